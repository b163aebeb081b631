//! The tools that people use on raw files.

use crate::mounted::{Mounted, pattern, run, try_run};

#[test]
fn cmp_and_cp_bring_every_byte() {
    // No multiple of anything.
    let bytes = pattern((5 << 20) + 777, 11);
    let mounted = Mounted::with(bytes.clone());
    let (source, copy) = (mounted.beside("source"), mounted.beside("copy"));
    std::fs::write(&source, &bytes).unwrap();
    for path in [mounted.version(), mounted.mirror()] {
        run(&format!("cmp {} {}", source.display(), path.display()));
        for sparse in ["auto", "always", "never"] {
            run(&format!("cp --sparse={sparse} {} {}", path.display(), copy.display()));
            assert!(std::fs::read(&copy).unwrap() == bytes, "--sparse={sparse}");
        }
    }
}

#[test]
fn cp_skips_holes_by_asking_for_them() {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = vec![0; 64 << 20];
    bytes[32 << 20] = 1;
    let mounted = Mounted::with(bytes);
    let copy = mounted.beside("copy");
    run(&format!("cp --sparse=auto {} {}", mounted.version().display(), copy.display()));
    let metadata = std::fs::metadata(copy).unwrap();
    assert_eq!(metadata.len(), 64 << 20);
    assert!(metadata.blocks() * 512 < 1 << 20, "{} sectors", metadata.blocks());
}

#[test]
fn qemu_img_compares_maps_and_converts() {
    let bytes = pattern((4 << 20) + 512, 12);
    let mounted = Mounted::with(bytes.clone());
    let (source, qcow2) = (mounted.beside("source"), mounted.beside("copy.qcow2"));
    std::fs::write(&source, &bytes).unwrap();
    let version = mounted.version();
    let (source, qcow2) = (source.display(), qcow2.display());
    let version = version.display();
    for cache in ["writeback", "none"] {
        run(&format!("qemu-img compare -T {cache} -f raw -F raw {source} {version}"));
        run(&format!("qemu-img convert -T {cache} -f raw -O qcow2 {version} {qcow2}"));
        run(&format!("qemu-img compare -f raw -F qcow2 {source} {qcow2}"));
    }
    let map = run(&format!("qemu-img map -f raw --output=json {version}"));
    assert!(map.contains("\"start\": 131072, \"length\": 65536"), "{map}");
}

#[test]
fn qemu_img_writes_a_whole_disk_into_a_mirror() {
    let bytes = pattern(4 << 20, 13);
    let mounted = Mounted::with(vec![0xee; 4 << 20]);
    let source = mounted.beside("source");
    std::fs::write(&source, &bytes).unwrap();
    for cache in ["writeback", "none"] {
        run(&format!(
            "qemu-img convert -n -t {cache} -f raw -O raw {} {}",
            source.display(),
            mounted.mirror().display()
        ));
        assert!(mounted.mirror_bytes() == bytes, "{cache}");
    }
}

#[test]
fn qemu_io_reads_writes_and_discards() {
    let mounted = Mounted::with(vec![0xee; 4 << 20]);
    let path = mounted.mirror();
    let path = path.display();
    for cache in ["writeback", "none"] {
        run(&format!(
            "qemu-io -f raw -t {cache} -d unmap -c write~-P~0x11~512~70000 -c flush -c \
             read~-P~0x11~512~70000 -c discard~1M~1M -c read~-P~0~1M~1M -c write~-z~3M~5k -c \
             read~-P~0~3M~5k -c read~-P~0xee~0~512 {path}"
        ));
        let bytes = mounted.mirror_bytes();
        assert!(bytes[512..70_512].iter().all(|byte| *byte == 0x11));
        assert!(bytes[1 << 20..2 << 20].iter().all(|byte| *byte == 0));
        assert!(bytes[(3 << 20) + 5120..].iter().all(|byte| *byte == 0xee));
    }
    let read_only = mounted.version();
    let read_only = read_only.display();
    run(&format!("qemu-io -r -f raw -t none -c read~-P~0xee~0~4M {read_only}"));
    let (succeeded, output) = try_run(&format!("qemu-io -f raw -c write~0~512 {read_only}"));
    assert!(!succeeded, "{output}");
}

#[test]
fn qemu_starts_with_the_files_as_drives() {
    let mounted = Mounted::with(pattern(4 << 20, 15));
    let (version, mirror) = (mounted.version(), mounted.mirror());
    let (version, mirror) = (version.display(), mirror.display());
    for drive in [
        format!("file={mirror},format=raw,cache=none,aio=threads,discard=unmap"),
        format!("file={mirror},format=raw,cache=none,aio=native"),
        format!("file={mirror},format=raw,cache=writeback"),
        format!("file={version},format=raw,cache=none,readonly=on"),
        format!("file={version},format=raw,snapshot=on"),
    ] {
        run(&format!(
            "sh -c echo~quit~|~qemu-system-x86_64~-accel~tcg~-S~-nodefaults~-display~none~-monitor\
             ~stdio~-device~virtio-blk-pci,drive=disk~-drive~if=none,id=disk,{drive}"
        ));
    }
}

#[test]
fn fio_verifies_what_it_wrote() {
    let mounted = Mounted::with(vec![0; 16 << 20]);
    for (direct, engine) in [(0, "psync"), (1, "libaio")] {
        run(&format!(
            "fio --name=verify --filename={} --rw=randwrite --bsrange=512-128k --size=16m --io_size=8m \
             --direct={direct} --ioengine={engine} --iodepth=8 --verify=crc32c --fsync=64 \
             --aux-path={} --randseed=7 --allow_file_create=0",
            mounted.mirror().display(),
            mounted.scratch.path().display(),
        ));
    }
}

#[test]
fn an_ext4_file_system_on_a_mirror_is_sound() {
    let mounted = Mounted::with(pattern(64 << 20, 14));
    let path = mounted.mirror();
    let path = path.display();
    run(&format!("mkfs.ext4 -q -F {path}"));
    run(&format!("e2fsck -f -n {path}"));
    let image = mounted.beside("image");
    std::fs::write(&image, mounted.mirror_bytes()).unwrap();
    run(&format!("e2fsck -f -n {}", image.display()));
}

#[test]
fn dd_does_not_destroy_a_mirror() {
    let mounted = Mounted::with(vec![1; 10_000]);
    let path = mounted.mirror();
    let line = format!("dd if=/dev/zero of={} bs=1000 count=1", path.display());
    let (succeeded, _) = try_run(&line);
    assert!(!succeeded);
    assert_eq!(mounted.mirror_bytes(), vec![1; 10_000]);
    run(&format!("{line} conv=notrunc,fsync"));
    assert_eq!(mounted.mirror_bytes()[..1000], [0; 1000]);
    assert_eq!(mounted.mirror_bytes()[1000..], [1; 9000]);
}
