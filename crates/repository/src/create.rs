//! Create: an empty image.

use model::block::LENGTH_MAX;
use model::{Error, ImageName, Kind, Result, VersionKind};

use catalog::{Condition, Publication, VersionFacts, VersionRecord};

use crate::layout::{LaidOut, Layout, Plan};
use crate::repository::Repository;

impl Repository {
    /// Makes a new image whose version 1 is one hole of `length` bytes.
    ///
    /// # Errors
    /// `Exists` where there is an image of that name; `Invalid` where the length is more than 1 PiB.
    pub fn create_image(&self, image: &ImageName, length: u64) -> Result<VersionRecord> {
        if length > LENGTH_MAX {
            return Err(Error::new(Kind::Invalid, "create", image.as_str())
                .because(format!("{length} bytes is more than the most, {LENGTH_MAX}")));
        }
        let lease = self.begin_lease()?;
        let no_segment = |_| Err(Error::new(Kind::Bug, "create", "a segment"));
        let plan = Plan { kind: VersionKind::Disk, kept: Vec::new(), draft: Box::new(no_segment) };
        let facts = |laid_out: &LaidOut| VersionFacts {
            kind: VersionKind::Disk,
            length,
            data_len: 0,
            content: laid_out.content,
            layout: laid_out.layout,
            parent: None,
            origin: "create".to_string(),
        };
        let layout = Layout::new(self, self.destination(&lease), plan);
        let (laid_out, record) = layout.finish_with_record(length, |laid_out| {
            self.record_of(image, &facts(laid_out)).map(Some)
        })?;
        self.publish(
            lease,
            &Publication {
                image: image.clone(),
                facts: facts(&laid_out),
                based_on: None,
                tag: None,
                condition: Condition::NewImage,
                record,
            },
        )
    }
}
