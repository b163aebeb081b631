//! Many rows in one parameter.
//!
//! Each statement is a round trip to the thread that owns the connection, which costs several times
//! what SQLite needs for one row. So rows go in as one blob of rows of a fixed width, and the
//! statement cuts it up again:
//!
//! ```text
//! blob:  row 0 | row 1 | ...        each: raw bytes (digest, hook), then decimals of fixed width
//! SQL:   WITH RECURSIVE asked(i) AS (0, 1, .. count - 1)   substr(blob, i * width + 1, ..)
//! ```

/// Characters of the widest integer, sign included.
pub(super) const INTEGER_WIDTH: usize = 20;

/// `WITH RECURSIVE asked(i)`: the numbers from 0 to below a parameter, which must not be negative.
macro_rules! asked {
    ($count:literal, $statement:expr) => {
        concat!(
            "WITH RECURSIVE asked (i) AS (SELECT 0 WHERE ",
            $count,
            " > 0 UNION ALL SELECT i + 1 FROM asked WHERE i + 1 < ",
            $count,
            ") ",
            $statement
        )
    };
}
pub(super) use asked;

/// Rows of a fixed width, on their way into a statement.
#[derive(Default)]
pub(super) struct Batch {
    /// The rows, one after the other.
    pub(super) bytes: Vec<u8>,
    /// How many there are.
    pub(super) count: i64,
}

impl Batch {
    /// Rows that are pieces of bytes of one length.
    pub(super) fn of_bytes<const N: usize>(rows: impl IntoIterator<Item = [u8; N]>) -> Self {
        let mut batch = Batch::default();
        for row in rows {
            batch.bytes.extend_from_slice(&row);
            batch.count += 1;
        }
        batch
    }

    /// Rows that are integers.
    pub(super) fn of_integers(rows: impl IntoIterator<Item = i64>) -> Self {
        let mut batch = Batch::default();
        for row in rows {
            batch.integer(row);
            batch.count += 1;
        }
        batch
    }

    /// Adds an integer to the row at hand.
    pub(super) fn integer(&mut self, value: i64) {
        self.bytes.extend_from_slice(format!("{value:0width$}", width = INTEGER_WIDTH).as_bytes());
    }
}
