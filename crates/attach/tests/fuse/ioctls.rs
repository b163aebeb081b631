//! CLONE and COMMIT from C.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use attach::fuse::Tree;

use crate::mounted::{Mounted, image, names, run, try_run};

const PROGRAM: &str = r#"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include "larder.h"

/* FILE MODE IMAGE: clones to IMAGE, then commits; prints both versions or the errno. */
int main(int argc, char **argv)
{
	struct larder_version version;
	int fd = open(argv[1], argv[2][0] == 'w' ? O_RDWR : O_RDONLY);

	if (argc != 4 || fd < 0)
		return 2;
	memset(&version, 0xff, sizeof version);
	strcpy(version.image, argv[3]);
	if (ioctl(fd, LARDER_IOC_CLONE, &version) != 0) {
		printf("clone %s\n", strerrorname_np(errno));
		return 1;
	}
	printf("%s@%llu\n", version.image, version.version);
	memset(&version, 0xff, sizeof version);
	if (ioctl(fd, LARDER_IOC_COMMIT, &version) != 0) {
		printf("commit %s\n", strerrorname_np(errno));
		return 1;
	}
	printf("%s@%llu\n", version.image, version.version);
	return 0;
}
"#;

#[test]
fn a_c_program_clones_and_commits() {
    let mounted = Mounted::with(vec![1; 10_000]);
    let (source, program) = (mounted.beside("ioctls.c"), mounted.beside("ioctls"));
    std::fs::write(&source, format!("#define _GNU_SOURCE\n{PROGRAM}")).unwrap();
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../include");
    let (source, program) = (source.display(), program.display());
    run(&format!("cc -Wall -Wextra -Werror -I {} -o {program} {source}", include.display()));

    let path = mounted.mirror();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[2; 100], 5000).unwrap();
    let path = path.display();
    assert_eq!(
        run(&format!("{program} {path} w team/snapshot")),
        "team/snapshot@1\nteam/snapshot@2\n"
    );
    assert_eq!(names(&mounted.path("team/snapshot")), ["1", "2"]);
    assert_eq!(std::fs::read(mounted.path("team/snapshot/1")).unwrap(), vec![1; 10_000]);
    let mut expected = vec![1; 10_000];
    expected[5000..5100].fill(2);
    assert_eq!(std::fs::read(mounted.path("team/snapshot/2")).unwrap(), expected);
    // The image it came from stays as it was.
    assert_eq!(mounted.tree.versions(&image("debian")).unwrap().len(), 1);

    let refused = |arguments: &str, expected: &str| {
        let (succeeded, output) = try_run(&format!("{program} {arguments}"));
        assert!(!succeeded && output == expected, "{arguments}: {output}");
    };
    refused(&format!("{path} w team/snapshot"), "clone EEXIST\n");
    refused(&format!("{path} w Not/Well-Formed"), "clone EINVAL\n");
    refused(&format!("{path} w ../escape"), "clone EINVAL\n");
    refused(&format!("{path} w mirrors/x"), "clone EINVAL\n");
    refused(&format!("{path} r other"), "clone EBADF\n");
    refused(&format!("{} r other", mounted.version().display()), "clone ENOTTY\n");
}
