//! Formats that the confined `qemu-img` converts.

use model::Kind;

use super::*;

fn made(folder: &Path, format: &str, words: &[&str]) -> (PathBuf, Vec<u8>) {
    let (raw, bytes) = mixed_file(folder, 1 << 20);
    let path = folder.join(format!("disk.{format}"));
    let mut all = vec!["convert", "-f", "raw", "-O", format];
    all.extend_from_slice(words);
    all.extend_from_slice(&[text(&raw), text(&path)]);
    run("qemu-img", &all);
    (path, bytes)
}

#[test]
fn vmdk_vdi_vhdx_and_others_are_read_and_their_holes_kept() {
    let folder = folder();
    let kinds: [(&str, &[&str]); 7] = [
        ("vmdk", &[]),
        ("vmdk", &["-o", "subformat=streamOptimized"]),
        ("vdi", &[]),
        ("vhdx", &[]),
        ("qed", &[]),
        ("qcow", &[]),
        ("vpc", &["-o", "force_size=on"]),
    ];
    for (format, words) in kinds {
        let (path, bytes) = made(folder.path(), format, words);
        let mut source = open_source(&path, &options(format)).map_err(|e| e.chain()).unwrap();
        let (disk, given) = read_all(&mut *source, 1 << 20).unwrap();
        check_equal(&disk, &bytes);
        assert!(given < 700_000, "{format}: {given} bytes were taken for data");
    }
}

#[test]
fn a_vmdk_that_describes_other_files_is_refused() {
    let folder = folder();
    for subformat in ["monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let (path, _) = made(folder.path(), "vmdk", &["-o", &format!("subformat={subformat}")]);
        for options in [options("vmdk"), OpenOptions::default()] {
            let error = error_of(&path, &options);
            assert_eq!(error.kind(), Kind::Refused, "{}", error.chain());
            assert!(error.chain().contains("other files"), "{}", error.chain());
        }
    }
    // A sparse header without a capacity is a description in disguise.
    let path = folder.path().join("disguised.vmdk");
    let mut bytes = b"KDMV\x01\0\0\0".to_vec();
    bytes.resize(4096, 0);
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(error_of(&path, &OpenOptions::default()).kind(), Kind::Refused);
}

#[test]
fn a_backing_file_of_another_format_is_refused() {
    let folder = folder();
    let (base, _) = made(folder.path(), "vmdk", &[]);
    let path = folder.path().join("top.vmdk");
    run("qemu-img", &["create", "-f", "vmdk", "-b", text(&base), "-F", "vmdk", text(&path)]);
    let error = error_of(&path, &options("vmdk"));
    assert_eq!(error.kind(), Kind::Refused, "{}", error.chain());
    assert!(error.chain().contains("disk.vmdk"), "{}", error.chain());
    let qed = folder.path().join("top.qed");
    run("qemu-img", &["create", "-f", "qed", "-b", text(&base), "-F", "vmdk", text(&qed)]);
    assert_eq!(error_of(&qed, &options("qed")).kind(), Kind::Refused);
}

#[test]
fn what_qemu_does_not_like_is_an_error_of_one_line() {
    let folder = folder();
    for format in ["vmdk", "vdi", "vhdx", "vpc", "qed", "qcow", "parallels"] {
        let path = folder.path().join("broken");
        let mut bytes = b"KDMV\x01\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        bytes.resize(100_000, 0xaa);
        std::fs::write(&path, &bytes).unwrap();
        let error = error_of(&path, &options(format));
        assert_eq!(error.kind(), Kind::Corrupt, "{}", error.chain());
        assert!(error.chain().contains("broken"), "{}", error.chain());
    }
}

#[test]
fn a_disk_with_a_name_that_qemu_would_read_as_more_is_only_a_file() {
    let folder = folder();
    let (disk, bytes) = made(folder.path(), "vdi", &[]);
    for name in ["nbd:localhost:10809", "json:{}", "-h", "a,b=c", "https:x"] {
        let path = folder.path().join(name);
        std::fs::copy(&disk, &path).unwrap();
        check_reads(&path, &OpenOptions::default(), &bytes);
    }
}
