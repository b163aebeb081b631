//! Describing, signing, verifying: who vouches for what a content is.
//!
//! ```text
//! description   one text about the content             ◄── signed as it stands
//! signature/ID  minisign, one for each key             trusted comment: which version, when
//! ```
//!
//! A signature vouches for the description, and the description names the content digest. So it holds
//! for whatever version has that content, in any repository; lazy reads then hang from the layout
//! that the repository vouches for under that content digest.
//!
//! **Source**: the file formats of minisign, <https://jedisct1.github.io/minisign/>.

use std::io::Cursor;
use std::str::FromStr;

use catalog::VersionRecord;
use ct_codecs::{Base64, Decoder};
use format::{decode_description, encode_description};
use minisign::{KeyPair, PublicKey, PublicKeyBox, SecretKey, SecretKeyBox, SignatureBox};
use model::description::Description;
use model::{Error, Kind, Result};

use crate::repository::Repository;

/// The name of the document that signatures sign.
pub const DESCRIPTION: &str = "description";

/// What the names of signatures begin with; the key's id in hexadecimal comes behind.
pub const SIGNATURE_PREFIX: &str = "signature/";

const SIGN: &str = "sign";
const VERIFY: &str = "verify";

/// A key that signs.
pub struct SigningKey {
    secret: SecretKey,
    public: PublicKey,
}

/// A key whose signatures are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedKey(PublicKey);

/// A pair of keys, as the texts of minisign's files.
pub struct NewKey {
    /// Its id, in hexadecimal.
    pub id: String,
    /// The secret key's file.
    pub secret: String,
    /// The public key's file.
    pub public: String,
}

/// What is known of one signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The id of the key that is said to have signed, in hexadecimal.
    pub key_id: String,
    /// What it says beside: only believed where the verdict is [`Verdict::Good`].
    pub comment: String,
    /// What came of it.
    pub verdict: Verdict,
}

/// Whether a signature holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// One of the keys that are believed has signed this description, and it is of this content.
    Good,
    /// None of the keys that are believed has this id.
    UnknownKey,
    /// It is damaged, of another text, or forged; and why.
    Bad(String),
}

impl NewKey {
    /// Makes a pair of keys; the secret one is encrypted where a password is given.
    ///
    /// Cost: with a password about a second and 1 GiB of memory, so that guessing costs as much.
    pub fn generate(password: Option<String>) -> Result<Self> {
        let failed = |error| Error::new(Kind::Unavailable, "generate", "a key").caused_by(error);
        let pair = match &password {
            None => KeyPair::generate_unencrypted_keypair(),
            Some(_) => KeyPair::generate_encrypted_keypair(password.clone()),
        };
        let pair = pair.map_err(failed)?;
        let id = key_id(pair.pk.keynum());
        Ok(NewKey {
            secret: pair
                .sk
                .to_box(Some(&format!("larder secret key {id}")))
                .map_err(failed)?
                .into(),
            public: pair.pk.to_box().map_err(failed)?.into(),
            id,
        })
    }
}

impl SigningKey {
    /// The key of a secret key's file. A password is needed where it is encrypted.
    ///
    /// # Errors
    /// `Refused` where the password is missing or wrong; `Invalid` for a file that is none.
    pub fn read(text: &str, password: Option<String>) -> Result<Self> {
        let failed = |kind, error| Error::new(kind, "read", "the secret key").caused_by(error);
        let secret = match unencrypted(text) {
            Some(bytes) => SecretKey::from_bytes(&bytes),
            None if password.is_some() => SecretKeyBox::from_string(text.trim_end())
                .and_then(|boxed| boxed.into_secret_key(password)),
            None => {
                return Err(Error::new(Kind::Refused, "read", "the secret key")
                    .because("it is encrypted, or none")
                    .hint("an encrypted key needs its password: `--password-file FILE`"));
            }
        };
        let secret = secret.map_err(|error| failed(Kind::Refused, error))?;
        let public =
            PublicKey::from_secret_key(&secret).map_err(|error| failed(Kind::Invalid, error))?;
        Ok(SigningKey { secret, public })
    }

    /// Its id, in hexadecimal.
    pub fn id(&self) -> String {
        key_id(self.public.keynum())
    }

    /// The key that verifies what it signs.
    pub fn trusted(&self) -> TrustedKey {
        TrustedKey(self.public.clone())
    }
}

impl TrustedKey {
    /// Its id, in hexadecimal.
    pub fn id(&self) -> String {
        key_id(self.0.keynum())
    }

    /// Its one line, as settings hold it.
    pub fn line(&self) -> String {
        self.0.to_base64()
    }
}

impl FromStr for TrustedKey {
    type Err = Error;

    /// Reads the line of a public key, or the text of its file.
    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let key = match text.contains('\n') {
            true => PublicKeyBox::from_string(text).and_then(PublicKeyBox::into_public_key),
            false => PublicKey::from_base64(text),
        };
        key.map(TrustedKey).map_err(|error| {
            Error::new(Kind::Invalid, "read the public key", format!("`{text:.64}`"))
                .caused_by(error)
                .hint("it is the second line of a `.pub` file")
        })
    }
}

impl Repository {
    /// The description of a version's content: the one that is kept, or what its facts say.
    ///
    /// # Errors
    /// `Corrupt` where the one that is kept is of another content or cannot be read.
    pub fn description(&self, version: &VersionRecord) -> Result<String> {
        let facts = &version.facts;
        if let Some(bytes) = self.document(facts.content, DESCRIPTION)? {
            let described = decode_description(&bytes)?;
            if (described.content, described.length) != (facts.content, facts.length) {
                return Err(Error::new(Kind::Corrupt, "describe", version.id.to_string())
                    .because(format!("its description is of {}", described.content)));
            }
            return Ok(String::from_utf8_lossy(&bytes).into_owned());
        }
        encode_description(&Description {
            content: facts.content,
            length: facts.length,
            kind: facts.kind,
            build: None,
            packages: Vec::new(),
            tests: Vec::new(),
        })
    }

    /// Keeps a description with the content that it is about. Signatures of another text go: they
    /// would vouch for nothing.
    ///
    /// # Errors
    /// `NotFound` where no version has the content; those of [`Repository::keep_document`].
    pub fn describe(&self, description: &Description) -> Result<()> {
        let (content, text) = (description.content, encode_description(description)?);
        if self.document(content, DESCRIPTION)?.as_deref() == Some(text.as_bytes()) {
            return Ok(());
        }
        for document in self.catalog.documents(content)? {
            if document.name.starts_with(SIGNATURE_PREFIX) {
                tracing::warn!(
                    signature = document.name,
                    "the description changes: its signature goes"
                );
                self.catalog.remove_document(content, &document.name)?;
            }
        }
        self.keep_document(content, DESCRIPTION, text.into_bytes()).map(drop)
    }

    /// Signs the description of a version's content, and keeps both. Returns the signature's text,
    /// as minisign writes it.
    ///
    /// # Errors
    /// Those of [`Repository::description`] and [`Repository::keep_document`].
    pub fn sign(&self, version: &VersionRecord, key: &SigningKey) -> Result<String> {
        let text = self.description(version)?;
        let (content, id) = (version.facts.content, key.id());
        let trusted = format!("{} signed {}", version.id, self.clock.now().to_rfc3339());
        let untrusted = format!("signature by larder key {id}");
        let signed = minisign::sign(
            Some(&key.public),
            &key.secret,
            Cursor::new(text.as_bytes()),
            Some(&trusted),
            Some(&untrusted),
        );
        let signature = signed
            .map_err(|error| Error::new(Kind::Bug, SIGN, version.id.to_string()).caused_by(error))?
            .into_string();
        if self.document(content, DESCRIPTION)?.is_none() {
            self.keep_document(content, DESCRIPTION, text.into_bytes())?;
        }
        let name = format!("{SIGNATURE_PREFIX}{id}");
        self.keep_document(content, &name, signature.clone().into_bytes())?;
        Ok(signature)
    }

    /// Checks every signature of a version's content.
    ///
    /// # Errors
    /// Those of the catalog and the store; a signature that does not hold is no error, but a verdict.
    pub fn verify(&self, version: &VersionRecord, keys: &[TrustedKey]) -> Result<Vec<Checked>> {
        let content = version.facts.content;
        let text = self.description(version)?;
        let mut checked = Vec::new();
        for document in self.catalog.documents(content)? {
            if let Some(id) = document.name.strip_prefix(SIGNATURE_PREFIX) {
                let bytes = self.chunks().document(document.digest)?;
                checked.push(check(id, &bytes, &text, keys));
            }
        }
        Ok(checked)
    }

    /// Refuses a version that none of the keys has signed which this host asks for; does nothing
    /// where it asks for none.
    ///
    /// # Errors
    /// `Refused`, with what is known of the signatures that there are.
    pub fn require_signature(&self, version: &VersionRecord) -> Result<()> {
        if self.trusted.is_empty() {
            return Ok(());
        }
        let checked = self.verify(version, &self.trusted)?;
        if checked.iter().any(|signature| signature.verdict == Verdict::Good) {
            return Ok(());
        }
        let told: Vec<String> = checked.iter().map(Checked::told).collect();
        let reason = match told.is_empty() {
            true => "it has no signature, and this host asks for one".to_string(),
            false => format!("this host believes none of its signatures: {}", told.join("; ")),
        };
        let ids: Vec<String> = self.trusted.iter().map(TrustedKey::id).collect();
        Err(Error::new(Kind::Refused, VERIFY, version.id.to_string())
            .because(reason)
            .hint(format!("`require_signature_by` names {}; `larder sign` signs", ids.join(" "))))
    }
}

impl Checked {
    /// What came of it, in a few words.
    pub fn told(&self) -> String {
        match &self.verdict {
            Verdict::Good => format!("{} is good", self.key_id),
            Verdict::UnknownKey => format!("{} is by a key that is not named", self.key_id),
            Verdict::Bad(reason) => format!("{} is bad: {reason}", self.key_id),
        }
    }
}

fn check(id: &str, bytes: &[u8], text: &str, keys: &[TrustedKey]) -> Checked {
    let bad = |reason: String| Checked {
        key_id: id.to_string(),
        comment: String::new(),
        verdict: Verdict::Bad(reason),
    };
    let signature = match SignatureBox::from_string(&String::from_utf8_lossy(bytes)) {
        Ok(signature) => signature,
        Err(error) => return bad(error.to_string()),
    };
    let key_id = key_id(signature.keynum());
    if key_id != id {
        return bad(format!("it is by {key_id}"));
    }
    let comment = signature.trusted_comment().unwrap_or_default();
    let of_this_id = keys.iter().filter(|key| key.id() == key_id);
    let mut verdict = Verdict::UnknownKey;
    // Ids are 8 random bytes: two keys may share one, and either may have signed.
    for key in of_this_id {
        match minisign::verify(&key.0, &signature, Cursor::new(text), true, false, false) {
            Ok(()) => return Checked { key_id, comment, verdict: Verdict::Good },
            Err(error) => verdict = Verdict::Bad(error.to_string()),
        }
    }
    Checked { key_id, comment, verdict }
}

/// The bytes of a secret key that is not encrypted. They are read here: minisign itself leaves the
/// checksum of such a key empty, which the library takes for damage.
fn unencrypted(text: &str) -> Option<Vec<u8>> {
    let bytes = Base64::decode_to_vec(text.lines().nth(1)?, None).ok()?;
    (bytes.get(2..4)? == [0, 0]).then_some(bytes)
}

/// As minisign writes it: the number that its little endian bytes are.
fn key_id(bytes: &[u8]) -> String {
    bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect()
}
