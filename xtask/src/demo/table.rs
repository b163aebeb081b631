//! The table at the end of the demo.

use std::time::Duration;

use crate::steps::seconds;

/// Everything that the demo measured.
pub struct Outcome {
    pub image_len: u64,
    pub image_data_bytes: u64,
    pub boot_fetched_bytes: u64,
    pub mirror_login: Duration,
    pub plain_login: Duration,
    pub commit_stored_bytes: u64,
    pub commit_new_bytes: u64,
    pub commit: Duration,
    pub commit_pause_ms: u64,
    pub repository_bytes: u64,
    pub second_data_bytes: u64,
    pub second_new_bytes: u64,
    pub second_stored_bytes: u64,
}

impl Outcome {
    /// Prints the table.
    pub fn print(&self) {
        let rows = self.rows();
        let widest = rows.iter().map(|(what, _, _)| what.len()).max().unwrap_or(0);
        println!();
        for (what, value, note) in rows {
            println!("{}", format!("{what:<widest$}  {value:>10}  {note}").trim_end());
        }
    }

    fn rows(&self) -> Vec<(&'static str, String, String)> {
        let of_image = self.boot_fetched_bytes as f64 / self.image_data_bytes.max(1) as f64;
        vec![
            (
                "image length",
                bytes(self.image_len),
                format!("{} of it data", bytes(self.image_data_bytes)),
            ),
            (
                "bytes the boot touched",
                bytes(self.boot_fetched_bytes),
                format!("fetched, compressed: {:.1} % of the image's data", of_image * 100.0),
            ),
            ("time to login from a mirror", seconds(self.mirror_login), String::new()),
            ("time to login from the plain file", seconds(self.plain_login), String::new()),
            (
                "bytes stored for the commit",
                bytes(self.commit_stored_bytes),
                format!("for {} of new blocks", bytes(self.commit_new_bytes)),
            ),
            (
                "commit time",
                format!("{:.2} s", self.commit.as_secs_f64()),
                format!("the guest was held up for {} ms", self.commit_pause_ms),
            ),
            ("repository, everything in it", bytes(self.repository_bytes), String::new()),
            (
                "cost of the second image",
                bytes(self.second_stored_bytes),
                format!(
                    "{} of its {} were new",
                    bytes(self.second_new_bytes),
                    bytes(self.second_data_bytes)
                ),
            ),
        ]
    }
}

/// Bytes for people: `12.3 MB`, in powers of ten.
pub fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "kB", "MB"] {
        if value < 999.5 {
            return if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.2} GB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_told_in_powers_of_ten() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(2_000), "2.0 kB");
        assert_eq!(bytes(12_345_678), "12.3 MB");
        assert_eq!(bytes(2_147_483_648), "2.15 GB");
    }
}
