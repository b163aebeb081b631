/*
 * larder.h: CLONE and COMMIT on a mirror's file in a Larder FUSE mount.
 *
 * Both act on a descriptor of FOLDER/mirrors/NAME that is open for writing, and return 0, or -1
 * with errno set. See docs/ioctls.md.
 */
#ifndef LARDER_H
#define LARDER_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define LARDER_IMAGE_LEN 256

/* One version of one image: `image@version`. The image's name ends with a NUL. */
struct larder_version {
	char image[LARDER_IMAGE_LEN];
	__u64 version;
};

/*
 * CLONE: makes the new image `image` from the version that the mirror stands on, and binds the
 * mirror to it, dirty state and all. In: image. Out: the version that the mirror stands on now.
 *
 * EEXIST  an image of that name exists      EINVAL  the name is not well-formed
 * EBADF   not open for writing              ENOTTY  not a mirror's file
 */
#define LARDER_IOC_CLONE _IOWR('L', 0x60, struct larder_version)

/*
 * COMMIT: makes what was written to the mirror the next version of its image. Out: that version.
 * What was stored through a shared mapping must be flushed (msync, fsync) before.
 *
 * ENOSPC  no space left; nothing is lost    EIO     the repository could not be reached
 * EBADF   not open for writing              ENOTTY  not a mirror's file
 */
#define LARDER_IOC_COMMIT _IOR('L', 0x61, struct larder_version)

#endif
