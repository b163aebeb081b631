//! The owner of mirrors on a host: state folder, control sockets, doors.
