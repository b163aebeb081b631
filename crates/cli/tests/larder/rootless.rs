//! `larder build` as an ordinary user. The machine's own tables of users stay as they are: others are
//! laid over them in a mount namespace of the test.

use std::process::Command;

use crate::builds::archive;
use crate::harness::{Failure, Larder, Outcome};

const UID: u32 = 12_345;

/// Lays tables of users over the machine's, opens FUSE to all as udev does, and goes on as the user.
const AS_USER: &str = r#"
set -e
home=$1; shift
mknod "$home/fuse" c 10 229 2>/dev/null || true
chmod 666 "$home/fuse"
mount --bind "$home/fuse" /dev/fuse
for name in passwd group subuid subgid; do
    [ -e "/etc/$name" ] || touch "/etc/$name"
    mount --bind "$home/$name" "/etc/$name"
done
cd "$home"
exec setpriv --reuid=12345 --regid=12345 --clear-groups --reset-env -- "$@"
"#;

/// A folder that belongs to the user, with a copy of larder and of the archive, a recipe, and tables
/// in which the user has a range of others.
fn prepare(larder: &Larder, subuid: &str) {
    larder.shell(&format!(
        "cp {} larder; cp -r {} archive",
        env!("CARGO_BIN_EXE_larder"),
        archive().display()
    ));
    let home = larder.path("");
    let home = home.display().to_string();
    let home = home.trim_end_matches('/');
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    larder.write("passwd", format!("{passwd}ann:x:{UID}:{UID}::{home}:/bin/sh\n").as_bytes());
    let group = std::fs::read_to_string("/etc/group").unwrap();
    larder.write("group", format!("{group}ann:x:{UID}:\n").as_bytes());
    for name in ["subuid", "subgid"] {
        larder.write(name, subuid.as_bytes());
    }
    let recipe = format!(
        "name = \"out\"\ndisk = {{ size = \"64M\", boot = \"bios\", boot_size = \"17M\" }}\n\
         [distribution]\nid = \"debian\"\nrelease = \"bookworm\"\n\
         [[archive]]\nurl = \"file://{home}/archive\"\nsigned_by = \"{home}/archive/keys.gpg\"\n\
         [[stage]]\nname = \"core\"\npackages = [\"kernel\"]\n\
         files = [{{ to = \"/etc/mail\", content = \"\", owner = \"0:50\", mode = \"2755\" }}]\n\
         run = [\"ln /etc/mail /etc/mail2\"]\n"
    );
    larder.write("core.toml", recipe.as_bytes());
    let top = "[[stage]]\nname = \"top\"\nparent = \"core\"\npackages = [\"more\"]\n\
               run = [\"id -u > /etc/step\", \"echo new > /boot/vmlinuz-10\", \"echo other > /boot/initrd.img-10\"]\n";
    larder.write("top.toml", format!("{recipe}{top}").as_bytes());
    larder.shell(&format!("chmod 755 .; chmod -R a+rX archive; chown -R {UID}:{UID} ."));
}

fn as_user(larder: &Larder, line: &str) -> Outcome {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", AS_USER, "as-user"]);
    command.arg(larder.path("")).arg(larder.path("larder")).args(line.split(' '));
    command.args(["--repo", "own", "--state", "own-state"]);
    let output = command.output().unwrap();
    Outcome {
        code: output.status.code(),
        stdout: output.stdout,
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn an_ordinary_user_builds_the_same_first_stage_and_others_upon_it() {
    let larder = Larder::new();
    prepare(&larder, "ann:200000:65536\n");
    let built = larder.json("build core.toml");
    larder.shell(&format!("cp core.lock top.lock; chown {UID} *.lock"));
    let outcome = as_user(&larder, "build core.toml --locked --format json");
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let own: serde_json::Value = serde_json::from_slice(&outcome.stdout).unwrap();
    assert_eq!(own["digest"], built["digest"], "the whole disk is the same");
    assert_eq!(own["stages"][0]["key"], built["stages"][0]["key"]);

    let outcome = as_user(&larder, "build top.toml --format json");
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(as_user(&larder, "export out top.raw").code, Some(0));
    let ask = |question: &str| {
        larder.shell(&format!("debugfs -R '{question}' 'top.raw?offset=18874368' 2>/dev/null"))
    };
    assert_eq!(ask("cat /etc/step"), "0\n");
    let mail = ask("stat /etc/mail");
    assert!(mail.contains("Mode:  02755") && mail.contains("Links: 2"), "{mail}");
    assert!(mail.contains("Group:    50"), "{mail}");
    assert_eq!(larder.shell("mtype -i top.raw@@1M ::vmlinuz"), "new\n");
    assert_eq!(
        larder.shell("e2fsck -fn 'top.raw?offset=18874368' >/dev/null 2>&1; echo $?"),
        "0\n"
    );
    // The file system is known by the identity that the boot loader names.
    let named = larder.shell("mtype -i top.raw@@1M ::syslinux.cfg | grep -o 'UUID=[^ ]*'");
    let is =
        larder.shell("dumpe2fs -h 'top.raw?offset=18874368' 2>/dev/null | sed -n 's/.*UUID: *//p'");
    assert_eq!(named.trim().trim_start_matches("UUID="), is.trim());
}

#[test]
fn a_user_without_a_range_of_users_is_told_what_to_do() {
    let larder = Larder::new();
    prepare(&larder, "bob:200000:65536\n");
    let Failure { message, hint } = as_user(&larder, "build core.toml").failure("build");
    assert_eq!(
        message,
        "build as ann: /etc/subuid gives this user no 65535 users for an image's files"
    );
    assert_eq!(
        hint.unwrap(),
        "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 ann"
    );
}
