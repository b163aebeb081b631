//! Documents, descriptions, signatures.

mod support;

use catalog::VersionRecord;
use model::description::{
    BuildDescription, Description, PackageDescription, StageDescription, TestDescription,
};
use model::progress::Cancel;
use model::{Kind, VersionKind};
use repository::repository::Machine;
use repository::signing::{DESCRIPTION, NewKey, SIGNATURE_PREFIX};
use repository::{Repository, SigningKey, TrustedKey, Verdict};
use support::{BytesSource, request};

/// A repository with one version.
fn with_version(folder: &tempfile::TempDir) -> (Repository, VersionRecord) {
    let path = folder.path().join("repository");
    let (repository, _) = Repository::open_or_create(&Machine::real(), &path).unwrap();
    let bytes = vec![5; 10_000];
    let cancel = Cancel::new();
    repository.import(&mut BytesSource::new(&bytes), &request("web", &cancel)).unwrap();
    let version = repository.catalog().version(&"web".parse().unwrap()).unwrap();
    (repository, version)
}

fn key() -> (SigningKey, TrustedKey) {
    let made = NewKey::generate(None).unwrap();
    (SigningKey::read(&made.secret, None).unwrap(), made.public.parse().unwrap())
}

fn built(version: &VersionRecord) -> Description {
    Description {
        content: version.facts.content,
        length: version.facts.length,
        kind: VersionKind::Disk,
        build: Some(BuildDescription {
            recipe: "ab".repeat(32),
            lock: "cd".repeat(32),
            builder: "larder 0.1.0".into(),
            stages: vec![StageDescription { name: "core".into(), key: "ef".repeat(32) }],
        }),
        packages: vec![PackageDescription {
            name: "dpkg".into(),
            version: "1.21.22".into(),
            architecture: "amd64".into(),
            digest: format!("sha256:{}", "01".repeat(32)),
        }],
        tests: vec![TestDescription { name: "boots".into(), passed: true }],
    }
}

#[test]
fn a_document_is_kept_replaced_and_refused_where_it_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let (repository, version) = with_version(&folder);
    let content = version.facts.content;
    repository.keep_document(content, "log/boot", b"one".to_vec()).unwrap();
    repository.keep_document(content, "log/boot", b"two".to_vec()).unwrap();
    repository.keep_document(content, "log/again", b"two".to_vec()).unwrap();
    assert_eq!(repository.document(content, "log/boot").unwrap().unwrap(), b"two");
    assert_eq!(repository.document(content, "log/again").unwrap().unwrap(), b"two");
    assert_eq!(repository.document(content, "nothing").unwrap(), None);
    let refused = |name: &str, bytes: Vec<u8>| {
        repository.keep_document(content, name, bytes).unwrap_err().kind()
    };
    assert_eq!(refused("Upper", vec![1]), Kind::Invalid);
    assert_eq!(refused("", vec![1]), Kind::Invalid);
    assert_eq!(refused("empty", Vec::new()), Kind::Invalid);
    assert_eq!(refused("long", vec![1; (4 << 20) + 1]), Kind::Invalid);
    for number in 2..64 {
        repository.keep_document(content, &format!("n{number}"), vec![number]).unwrap();
    }
    assert_eq!(refused("one-more", vec![1]), Kind::Full);
    repository.keep_document(content, "log/boot", b"three".to_vec()).unwrap();
}

#[test]
fn a_signature_is_of_one_text_of_one_content_by_one_key() {
    let folder = tempfile::tempdir().unwrap();
    let (repository, version) = with_version(&folder);
    let content = version.facts.content;
    let ((signing, trusted), (_, stranger)) = (key(), key());
    repository.describe(&built(&version)).unwrap();
    repository.sign(&version, &signing).unwrap();
    let verdict =
        |keys: &[TrustedKey]| repository.verify(&version, keys).unwrap()[0].verdict.clone();
    assert_eq!(verdict(std::slice::from_ref(&trusted)), Verdict::Good);
    assert_eq!(verdict(&[stranger]), Verdict::UnknownKey);

    // The same description again changes nothing; another one takes the signatures away.
    repository.describe(&built(&version)).unwrap();
    assert_eq!(repository.verify(&version, &[]).unwrap().len(), 1);
    let mut failed = built(&version);
    failed.tests[0].passed = false;
    repository.describe(&failed).unwrap();
    assert!(repository.verify(&version, &[]).unwrap().is_empty());

    // A signature under the text of another description, or under another key's name.
    let signature = repository.sign(&version, &signing).unwrap();
    let name = format!("{SIGNATURE_PREFIX}{}", signing.id());
    let honest = repository.document(content, DESCRIPTION).unwrap().unwrap();
    let forged = String::from_utf8(honest).unwrap().replace("passed = false", "passed = true");
    repository.keep_document(content, DESCRIPTION, forged.into_bytes()).unwrap();
    assert!(matches!(verdict(std::slice::from_ref(&trusted)), Verdict::Bad(_)));
    let other = name.replace(&signing.id(), "0123456789abcdef");
    repository.keep_document(content, &other, signature.into_bytes()).unwrap();
    repository.keep_document(content, &name, b"nonsense".to_vec()).unwrap();
    let checked = repository.verify(&version, &[trusted]).unwrap();
    assert!(checked.iter().all(|signature| matches!(signature.verdict, Verdict::Bad(_))));
}

#[test]
fn a_description_of_another_content_or_in_other_words_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (repository, version) = with_version(&folder);
    let content = version.facts.content;
    let text = repository.description(&version).unwrap();
    for (forged, kind) in [
        (text.replace("length = 10000", "length = 20000"), Kind::Corrupt),
        (format!("{text}\nsurprise = 1\n"), Kind::Corrupt),
        (format!("# said twice\n{text}"), Kind::Corrupt),
        (text.replace("format = 1", "format = 9"), Kind::Refused),
        (text.replace("disk", "tape"), Kind::Corrupt),
        ("\u{0}".into(), Kind::Corrupt),
    ] {
        repository.keep_document(content, DESCRIPTION, forged.clone().into_bytes()).unwrap();
        assert_eq!(repository.description(&version).unwrap_err().kind(), kind, "{forged}");
        let (_, trusted) = key();
        let trusting = repository.clone().trusting(&[trusted]);
        assert_eq!(trusting.require_signature(&version).unwrap_err().kind(), kind);
    }
}

#[test]
fn a_description_reads_back_as_the_golden_text() {
    let folder = tempfile::tempdir().unwrap();
    let (_, version) = with_version(&folder);
    let described = built(&version);
    let text = format::encode_description(&described).unwrap();
    assert_eq!(text, include_str!("golden/description-1.toml"));
    assert_eq!(format::decode_description(text.as_bytes()).unwrap(), described);
}
