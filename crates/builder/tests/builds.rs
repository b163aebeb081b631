//! Builds from a tiny signed archive, offline.

#[allow(dead_code, reason = "what the other tests need is there too")]
mod support;

use std::path::Path;

use model::Kind;
use support::{Ask, Kitchen};

const CORE: &str = "disk.size = \"64M\"\n[[stage]]\nname = \"core\"\npackages = [\"tiny\"]\n";

#[test]
fn a_first_stage_is_made_of_exactly_the_lock_and_found_again() {
    let kitchen = Kitchen::new();
    kitchen.recipe(CORE);
    let built = kitchen.build();
    assert!(built.is_new);
    assert_eq!(built.version.to_string(), "out@1");
    assert_eq!(built.stages.len(), 1);
    assert!(!built.stages[0].cached);
    assert_eq!(kitchen.ask("out", "cat /usr/share/tiny/version"), "one\n");
    assert_eq!(kitchen.ask("out", "cat /var/lib/misc/tiny"), "configured\n");
    assert_eq!(kitchen.ask("out", "cat /etc/apt/sources.list"), "");
    let lock = std::fs::read_to_string(kitchen.path("recipe.lock")).unwrap();
    assert!(
        lock.contains("name = \"tools\"")
            && lock.contains("path = \"pool/bookworm/tiny_1.0_all.deb\""),
        "{lock}"
    );
    kitchen.nothing_is_left();

    let again = kitchen.build();
    assert!(!again.is_new && again.stages[0].cached);
    assert_eq!(again.version, built.version);
    assert_eq!(std::fs::read_to_string(kitchen.path("recipe.lock")).unwrap(), lock);
}

#[test]
fn the_same_lock_gives_the_same_content_in_another_repository() {
    let (one, two) = (Kitchen::new(), Kitchen::new());
    one.recipe(CORE);
    let first = one.build();
    two.recipe(CORE);
    std::fs::copy(one.path("recipe.lock"), two.path("recipe.lock")).unwrap();
    let second = two.build_as(Ask { locked: true, ..Ask::default() }).unwrap();
    assert_eq!(first.stages[0].key, second.stages[0].key);
    assert_eq!(first.content, second.content);
}

#[test]
fn a_derived_stage_changes_its_parent_in_place() {
    let kitchen = Kitchen::new();
    kitchen.write("motd", "welcome\n");
    kitchen.recipe(&format!(
        "{CORE}[[stage]]\nname = \"more\"\nparent = \"core\"\npackages = [\"more\"]\n\
         files = [{{ to = \"/etc/motd\", from = \"motd\", mode = \"0600\", owner = \"ann:staff\" }}]\n\
         users = [{{ name = \"ann\", groups = [\"staff\"], ssh_keys = [\"ssh-ed25519 AAAA ann\"] }}]\n\
         services = {{ enable = [\"more\"] }}\n\
         run = [\"cat /etc/motd > /etc/step\", {{ command = \"id -u >> /etc/step\", timeout = \"20s\" }}]\n\
         [system]\nhostname = \"box\"\nlocale = \"C.UTF-8\"\nroot_password = \"\"\n"
    ));
    let built = kitchen.build();
    assert_eq!(built.stages.iter().map(|stage| stage.cached).collect::<Vec<_>>(), [false, false]);
    kitchen.nothing_is_left();
    assert_eq!(kitchen.ask("out", "cat /etc/step"), "welcome\n0\n");
    assert_eq!(kitchen.ask("out", "cat /etc/hostname"), "box\n");
    assert_eq!(kitchen.ask("out", "cat /etc/systemd/system/more.enable"), "enable\n");
    assert!(
        kitchen.ask("out", "cat /etc/passwd").contains("ann:x:1000:1000::/home/ann:/bin/bash\n")
    );
    assert!(kitchen.ask("out", "cat /etc/group").contains("staff:x:50:ann\n"));
    assert!(kitchen.ask("out", "cat /etc/shadow").starts_with("root::"));
    let motd = kitchen.ask("out", "stat /etc/motd");
    assert!(motd.contains("Mode:  0600") && motd.contains("User:  1000   Group:    50"), "{motd}");
    // What the package made on its way is gone; the folder of its log is not.
    assert_eq!(kitchen.ask("out", "cat /etc/machine-id"), "");
    assert!(!kitchen.ask("out", "ls /etc/ssh").contains("ssh_host"));
    assert!(kitchen.ask("out", "stat /var/log/more").contains("Type: directory"));
    assert!(!kitchen.ask("out", "ls /var/log/more").contains(" log"));
    // The parent is what it was.
    let core = format!("stages/{}", built.stages[0].key);
    assert_eq!(kitchen.ask(&core, "cat /etc/motd"), "");

    // Another text in a file: the core is there, the second stage is made again, and says why.
    kitchen.write("motd", "hello\n");
    let again = kitchen.build();
    assert!(again.stages[0].cached);
    assert_eq!(again.stages[1].why, "the files that it copies changed");
    let log = std::fs::read_to_string(kitchen.path("state/build/logs/out-more.log")).unwrap();
    assert!(log.contains("its packages are there") && !log.contains("installing"), "{log}");
    assert_eq!(again.version.to_string(), "out@2");
    assert_eq!(kitchen.ask("out", "cat /etc/step"), "hello\n0\n");
}

#[test]
fn a_recipe_may_stand_on_a_version() {
    let kitchen = Kitchen::new();
    kitchen.recipe(CORE);
    kitchen.build();
    kitchen.recipe("[[stage]]\nname = \"upper\"\nparent = \"out@1\"\npackages = [\"more\"]\n");
    let built = kitchen.build();
    assert_eq!(built.version.to_string(), "out@2");
    assert!(kitchen.ask("out", "stat /usr/share/more/data").contains("Size: 65536"));
    let lock = std::fs::read_to_string(kitchen.path("recipe.lock")).unwrap();
    assert!(
        !lock.contains("name = \"tiny\""),
        "what the parent has is not installed again: {lock}"
    );
}

#[test]
fn a_lock_that_does_not_fit_is_refused_where_it_must_fit() {
    let kitchen = Kitchen::new();
    kitchen.recipe(CORE);
    let locked = || kitchen.build_as(Ask { locked: true, ..Ask::default() });
    let error = locked().unwrap_err();
    assert_eq!(error.kind(), Kind::Stale);
    assert!(error.to_string().ends_with("recipe.lock: there is no lock"), "{error}");
    kitchen.build();
    locked().unwrap();
    kitchen.recipe(&CORE.replace("\"tiny\"", "\"more\""));
    let error = locked().unwrap_err();
    assert!(error.to_string().ends_with("the lock is not for what stage `core` asks"), "{error}");
}

/// Fails a second stage with these lines; the error and its hint.
fn second_stage_fails(lines: &str) -> (Kitchen, model::Error) {
    let kitchen = Kitchen::new();
    kitchen.recipe(&format!("{CORE}[[stage]]\nname = \"bad\"\nparent = \"core\"\n{lines}\n"));
    let error = kitchen.fails();
    let kept = kitchen.repository.catalog().images(&Default::default()).unwrap();
    assert_eq!(kept.len(), 1, "the finished stage is kept, and nothing else: {kept:?}");
    (kitchen, error)
}

#[test]
fn a_step_that_fails_is_told_with_its_line_and_its_last_words() {
    let (kitchen, error) =
        second_stage_fails("run = [\n\"true\",\n\"echo first; echo last words >&2; exit 3\"]");
    let text = error.to_string();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(
        text.contains("line 11, stage `bad`: the step `echo first; echo last words >&2; exit 3`"),
        "{text}"
    );
    assert!(text.ends_with("ended with exit status: 3: first | last words"), "{text}");
    // The mended recipe goes on where it was.
    kitchen
        .recipe(&format!("{CORE}[[stage]]\nname = \"bad\"\nparent = \"core\"\nrun = [\"true\"]\n"));
    assert!(kitchen.build().stages[0].cached);
}

#[test]
fn a_step_that_hangs_is_ended_with_everything_that_it_has_started() {
    let (_kitchen, error) = second_stage_fails(
        "run = [{ command = \"sleep 1000 & setsid sleep 1000 & sleep 1000\", timeout = \"2s\" }]",
    );
    assert!(error.to_string().contains("took longer than 2 s and was ended"), "{error}");
}

#[test]
fn a_step_that_leaves_processes_behind_does_not_keep_the_build() {
    let kitchen = Kitchen::new();
    let run = "run = [\"sleep 1000 > /kept-open & true\"]";
    kitchen.recipe(&format!("{CORE}[[stage]]\nname = \"more\"\nparent = \"core\"\n{run}\n"));
    kitchen.build();
    kitchen.nothing_is_left();
}

#[test]
fn a_step_that_fills_the_disk_is_told_so() {
    let (_kitchen, error) =
        second_stage_fails("run = [\"dd if=/dev/urandom of=/full bs=1M 2>&1\"]");
    assert_eq!(error.kind(), Kind::Full);
    assert!(error.to_string().contains("the disk is full: "), "{error}");
    assert!(error.hint_text().unwrap().contains("`size`"));
}

#[test]
fn a_step_reaches_nothing_outside_its_root() {
    let kitchen = Kitchen::new();
    kitchen.write("victim", "safe");
    let victim = kitchen.path("victim").display().to_string();
    // Each must fail; what succeeds is named in /escaped.
    let attempts = [
        format!("echo bad > {victim}"),
        format!("cat {victim}"),
        "mknod /disk b 254 0".to_owned(),
        "ls /dev/vda /dev/loop-control /dev/fuse".to_owned(),
        "mount -t tmpfs none /mnt".to_owned(),
        "mount -t proc none /proc".to_owned(),
        "mkdir -p /mnt && mount --bind / /mnt".to_owned(),
        "umount /proc/sys".to_owned(),
        "echo /tmp/x > /proc/sys/kernel/core_pattern".to_owned(),
        "echo b > /proc/sysrq-trigger".to_owned(),
        "hostname escaped".to_owned(),
        format!("cat /proc/1/root{victim}"),
        format!("kill -0 {}", std::process::id()),
        // Tracing begins with opening the other's memory.
        format!("exec 3<>/proc/{}/mem", std::process::id()),
        "dd if=/proc/kcore of=/dev/null bs=1 count=1".to_owned(),
        "mknod /memory c 1 1 && dd if=/memory of=/dev/null bs=1 count=1".to_owned(),
        "dd if=/dev/vda of=/dev/null bs=1 count=1".to_owned(),
        "echo 1 > /proc/sys/vm/drop_caches".to_owned(),
        format!("ln -s {victim} /to-victim && echo bad > /to-victim && cat {victim}"),
        "ls /sys/kernel".to_owned(),
        "mount -o remount,rw /proc/sys".to_owned(),
        "env mount -t ext4 /dev/loop0 /mnt".to_owned(),
        "exec 3<>/dev/tcp/127.0.0.1/1".to_owned(),
        "grep -q 'eth\\|en[sp]\\|veth' /proc/net/dev".to_owned(),
        format!(
            "mkdir -p /a && chroot /a /bin/true || cd / && cd ../../../../../.. && cat .{victim}"
        ),
    ];
    let mut script = String::from("mkdir -p /mnt; : > /escaped\n");
    for (number, attempt) in attempts.iter().enumerate() {
        script.push_str(&format!(
            "if ({attempt}) >/dev/null 2>&1; then echo {number} >> /escaped; fi\n"
        ));
    }
    // Links that lead out do so in the image alone.
    script.push_str(
        "rm -rf /var/log /tmp2; ln -s /etc /var/log; ln -s ../../../../../../etc /run2\n",
    );
    kitchen.write("script.sh", &script);
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    kitchen.recipe(&format!(
        "{CORE}[[stage]]\nname = \"out\"\nparent = \"core\"\nrun = [{{ command = \"bash /script.sh\" }}]\n\
         files = [{{ to = \"/script.sh\", from = \"script.sh\" }}]\n\
         [[stage]]\nname = \"links\"\nparent = \"out\"\n\
         files = [{{ to = \"/run2/larder-escaped\", content = \"x\" }}]\n"
    ));
    kitchen.build();
    kitchen.nothing_is_left();
    let escaped = kitchen.ask("out", "cat /escaped");
    let escaped: Vec<_> =
        escaped.lines().map(|line| attempts[line.parse::<usize>().unwrap()].as_str()).collect();
    assert!(escaped.is_empty(), "these got out: {escaped:#?}");
    assert_eq!(std::fs::read_to_string(victim).unwrap(), "safe");
    assert!(!Path::new("/etc/larder-escaped").exists());
    assert_eq!(kitchen.ask("out", "cat /etc/larder-escaped"), "x");
    assert_eq!(std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), hostname);
    assert!(Path::new("/etc/passwd").exists());
}

#[test]
fn a_step_has_the_network_only_where_it_asks_for_it() {
    let kitchen = Kitchen::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let run = |network| {
        format!(
            "{CORE}[[stage]]\nname = \"n\"\nparent = \"core\"\n\
             run = [{{ command = \"bash -c ': > /dev/tcp/127.0.0.1/{port}'\", network = {network} }}]\n"
        )
    };
    kitchen.recipe(&run(false));
    kitchen.fails();
    kitchen.recipe(&run(true));
    kitchen.build();
}

#[test]
fn a_package_that_does_not_exist_is_told_with_its_line() {
    let kitchen = Kitchen::new();
    kitchen.recipe(&CORE.replace("\"tiny\"", "\"tiny\",\n\"nosuch\""));
    let error = kitchen.fails();
    assert_eq!(error.kind(), Kind::NotFound);
    let text = error.to_string();
    assert!(
        text.ends_with("line 6, stage `core`: there is no package `nosuch` in the archives"),
        "{text}"
    );
    assert!(!kitchen.path("recipe.lock").exists());
}

#[test]
fn a_package_that_cannot_be_configured_is_told_with_the_stage() {
    let (_kitchen, error) = second_stage_fails("packages = [\"broken\"]");
    let text = error.to_string();
    assert!(text.contains("stage `bad`: the installation of its packages ended with"), "{text}");
    assert!(text.contains("this package is broken"), "{text}");
}

#[test]
fn an_archive_with_another_signature_is_refused() {
    let kitchen = Kitchen::new();
    kitchen.recipe(CORE);
    let text = std::fs::read_to_string(kitchen.path("recipe.toml")).unwrap();
    kitchen.write("recipe.toml", &text.replace("/keys.gpg", "/other.gpg"));
    let error = kitchen.fails();
    assert_eq!(error.kind(), Kind::Refused, "{}", error.chain());
    assert!(error.hint_text().unwrap().contains("`signed_by`"));
}

#[test]
fn an_archive_that_changed_behind_its_lock_is_a_transient_error() {
    let kitchen = Kitchen::new();
    let copy = kitchen.path("archive");
    let copied =
        std::process::Command::new("cp").arg("-r").arg(&kitchen.archive).arg(&copy).status();
    assert!(copied.unwrap().success());
    let kitchen = Kitchen { archive: copy.clone(), ..kitchen };
    kitchen.recipe(CORE);
    kitchen.build();
    // Another host with the same lock, and an archive in the middle of something.
    let other = Kitchen { archive: copy.clone(), ..Kitchen::new() };
    other.recipe(CORE);
    std::fs::copy(kitchen.path("recipe.lock"), other.path("recipe.lock")).unwrap();
    let deb = copy.join("pool/bookworm/tiny_1.0_all.deb");
    let whole = std::fs::read(&deb).unwrap();
    std::fs::write(&deb, &whole[..whole.len() / 2]).unwrap();
    let error = other.fails();
    assert_eq!(error.kind(), Kind::Unavailable);
    let text = error.chain();
    assert!(
        text.contains("fetch the package tiny 1.0: what the archive has is not what was locked"),
        "{text}"
    );
    std::fs::write(&deb, whole).unwrap();
    other.build();
}

#[test]
fn a_machine_id_or_a_host_key_is_never_baked_in() {
    let kitchen = Kitchen::new();
    let stage =
        |lines: &str| format!("{CORE}[[stage]]\nname = \"b\"\nparent = \"core\"\n{lines}\n");
    for (lines, what) in [
        ("packages = [\"more\"]\nkeep = [\"/etc/machine-id\"]", "/etc/machine-id"),
        ("packages = [\"more\"]\nkeep = [\"/etc/ssh\"]", "/etc/ssh/ssh_host_rsa_key"),
    ] {
        kitchen.recipe(&stage(lines));
        let error = kitchen.fails();
        assert_eq!(error.kind(), Kind::Refused);
        assert!(error.to_string().contains(what), "{error}");
    }
    kitchen.recipe(&stage("files = [{ to = \"/etc/machine-id\", content = \"12\" }]"));
    let error = kitchen.fails();
    assert!(error.to_string().contains("line 9, column 10: `/etc/machine-id`"), "{error}");
}

#[test]
fn a_cancelled_build_leaves_nothing() {
    let kitchen = Kitchen::new();
    kitchen.recipe(&format!(
        "{CORE}[[stage]]\nname = \"slow\"\nparent = \"core\"\nrun = [\"sleep 1000\"]\n"
    ));
    let error = std::thread::scope(|scope| {
        let building = scope.spawn(|| kitchen.build_as(Ask::default()).unwrap_err());
        let log = kitchen.path("state/build/logs/out-slow.log");
        while !std::fs::read_to_string(&log).unwrap_or_default().contains("sleep 1000") {
            std::thread::yield_now();
        }
        kitchen.cancel.cancel();
        building.join().unwrap()
    });
    assert_eq!(error.kind(), Kind::Cancelled);
    kitchen.nothing_is_left();
}

#[test]
fn a_newer_package_is_taken_when_asked_for_and_its_parent_is_made_anew() {
    let kitchen = Kitchen::new();
    kitchen.recipe(CORE);
    kitchen.build();
    let text = std::fs::read_to_string(kitchen.path("recipe.toml")).unwrap();
    kitchen.write("recipe.toml", &text.replace("signed_by", "suite = \"next\"\nsigned_by"));
    let built = kitchen.build();
    assert_eq!(built.stages[0].why, "its packages changed");
    assert_eq!(kitchen.ask("out", "cat /usr/share/tiny/version"), "two\n");
    let same = kitchen.build_as(Ask { update: true, ..Ask::default() }).unwrap();
    assert!(same.stages[0].cached, "resolved anew to the same packages");
}

/// The name and digest of what a boot partition holds.
fn boot_files(kitchen: &Kitchen) -> String {
    kitchen.ask("out", "quit");
    let mut lines = String::new();
    for name in ["vmlinuz", "initrd.img"] {
        let output = std::process::Command::new("mcopy")
            .args(["-i", &format!("{}@@1M", kitchen.path("exported.raw").display())])
            .args([&format!("::{name}"), "-"])
            .output()
            .unwrap();
        lines.push_str(&format!("{name} {}\n", output.stdout.len()));
    }
    lines
}

/// Where the disks of two builds differ first, and in how many bytes.
fn first_difference(one: &Kitchen, two: &Kitchen) -> Option<(usize, usize)> {
    let [one, two] = [one, two].map(|kitchen| {
        kitchen.ask("out", "quit");
        std::fs::read(kitchen.path("exported.raw")).unwrap()
    });
    let mut differ = (0..one.len().max(two.len())).filter(|at| one.get(*at) != two.get(*at));
    let first = differ.next()?;
    Some((first, 1 + differ.count()))
}

#[test]
fn disks_with_partitions_are_the_same_bytes_too_and_follow_their_kernel() {
    for boot in ["bios", "uefi"] {
        let disk = format!("disk = {{ size = \"64M\", boot = \"{boot}\", boot_size = \"17M\" }}\n");
        let core = format!("{disk}[[stage]]\nname = \"core\"\npackages = [\"kernel\"]\n");
        let (one, two) = (Kitchen::new(), Kitchen::new());
        one.recipe(&core);
        two.recipe(&core);
        assert_eq!(one.build().stages[0].key, two.build().stages[0].key);
        assert_eq!(first_difference(&one, &two), None, "{boot}");
        assert_eq!(boot_files(&one), "vmlinuz 200000\ninitrd.img 200000\n");
        one.recipe(&format!(
            "{core}[[stage]]\nname = \"newer\"\nparent = \"core\"\n\
             run = [\"echo new > /boot/vmlinuz-10\", \"echo other > /boot/initrd.img-10\"]\n"
        ));
        one.build();
        assert_eq!(boot_files(&one), "vmlinuz 4\ninitrd.img 6\n");
    }
}

#[test]
fn an_ubuntu_is_built_by_the_same_path_with_its_security_from_a_suite_of_its_own() {
    let kitchen = Kitchen::new();
    let archive = kitchen.archive.display();
    let suite = |name: &str| {
        format!(
            "[[archive]]\nurl = \"file://{archive}\"\nsuite = \"{name}\"\n\
             signed_by = \"{archive}/keys.gpg\"\n"
        )
    };
    let recipe = |archives: &str| {
        let text = "name = \"out\"\ndisk.size = \"64M\"\n\
                    [distribution]\nid = \"ubuntu\"\nrelease = \"noble\"\n\
                    [[stage]]\nname = \"core\"\npackages = [\"tiny\"]\n";
        kitchen.write("recipe.toml", &format!("{text}{archives}"));
    };
    // This machine has no packages of Ubuntu, unless it is one.
    let os = std::fs::read_to_string("/etc/os-release").unwrap();
    if !os.lines().any(|line| line == "ID=ubuntu") {
        recipe("");
        let error = kitchen.fails();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.hint_text().unwrap().contains("`[[archive]]`"), "{}", error.chain());
    }
    recipe(&format!("{}{}", suite("noble"), suite("noble-security")));
    kitchen.build();
    assert_eq!(kitchen.ask("out", "cat /usr/share/tiny/version"), "two\n");
    kitchen.nothing_is_left();
    // A release whose suite is not there any more.
    recipe(&suite("warty"));
    let error = kitchen.fails();
    assert_eq!(error.kind(), Kind::NotFound, "{}", error.chain());
    assert!(error.hint_text().unwrap().contains("old releases"), "{}", error.chain());
}

#[test]
fn what_cannot_run_here_is_resolved_and_locked_and_told_what_it_needs() {
    let kitchen = Kitchen::new();
    kitchen.recipe("disk.size = \"64M\"\n[[stage]]\nname = \"core\"\npackages = [\"tiny\"]\n");
    let text = std::fs::read_to_string(kitchen.path("recipe.toml")).unwrap();
    let text = text.replace("id = \"debian\"", "id = \"debian\"\narch = \"arm64\"");
    kitchen.write("recipe.toml", &text);
    let can_run = Path::new("/proc/sys/fs/binfmt_misc/qemu-aarch64").exists();
    if can_run || std::env::consts::ARCH == "aarch64" {
        return;
    }
    for locked in [false, true] {
        let ask = Ask { locked, ..Ask::default() };
        let error = kitchen.build_as(ask).map(|built| built.version).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.chain().contains("line 9: `arch`"), "{}", error.chain());
        assert!(error.hint_text().unwrap().contains("qemu-user-static"));
        kitchen.nothing_is_left();
    }
    let lock = std::fs::read_to_string(kitchen.path("recipe.lock")).unwrap();
    assert!(lock.contains("architecture = \"arm64\""), "{lock}");
}
