//! A text that nobody may see by accident: it prints as `***`, is not serialized, and is overwritten when its last owner
//! lets go. Refuses to know where it came from.
//!
//! The overwriting is best effort: copies that a guest's environment or an HTTP head holds are not ours any more.

use std::fmt;
use std::sync::Arc;

/// A secret's value in clear text. Cheap to clone; all clones are one text.
#[derive(Clone, PartialEq, Eq)]
pub struct Redacted(Arc<Text>);

#[derive(PartialEq, Eq)]
struct Text(String);

impl Redacted {
    pub fn new(text: String) -> Self {
        Self(Arc::new(Text(text)))
    }

    /// The text itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0.0
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        wipe(&mut std::mem::take(&mut self.0).into_bytes());
    }
}

/// Overwrites what may be a secret.
pub fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    // Else nobody would read it again, and a compiler may leave the writing out.
    std::hint::black_box(bytes);
}

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_prints_as_stars_inside_whatever_holds_it() {
        let secret = Redacted::new("hunter2".into());
        let shown = format!("{secret} {secret:?} {:?} {:#?}", Some(&secret), (&secret, 1));
        assert!(!shown.contains("hunter2") && shown.contains("***"), "{shown}");
        assert_eq!(secret.expose(), "hunter2");
    }
}
