//! Why something failed: a sentence for people, and the error behind it for code.

use std::error::Error;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// A sentence that says why something failed and what to do about it, and the error that it comes from, if there is one.
///
/// The sentence says what that error says, so printing it alone is enough. The error itself is its [`Error::source`], for code that
/// has to tell cases apart: [`Reason::cause`] finds one by its type.
#[derive(Clone)]
pub struct Reason {
    text: Arc<str>,
    cause: Option<Arc<dyn Error + Send + Sync>>,
}

impl Reason {
    /// A sentence of its own, with the error that it comes from.
    pub fn because(text: impl AsRef<str>, cause: impl Error + Send + Sync + 'static) -> Self {
        Self { text: Arc::from(text.as_ref()), cause: Some(Arc::new(cause)) }
    }

    /// What an error says of itself.
    pub fn of(cause: impl Error + Send + Sync + 'static) -> Self {
        Self::because(cause.to_string(), cause)
    }

    /// The same cause in other words.
    #[must_use]
    pub fn reworded(self, text: impl AsRef<str>) -> Self {
        Self { text: Arc::from(text.as_ref()), ..self }
    }

    /// The first error of this type among the error that this comes from and its sources.
    pub fn cause<E: Error + 'static>(&self) -> Option<&E> {
        let mut next = self.source();
        while let Some(error) = next {
            if let Some(wanted) = error.downcast_ref() {
                return Some(wanted);
            }
            next = error.source();
        }
        None
    }
}

impl Deref for Reason {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.text, f)
    }
}

/// By their sentences.
impl PartialEq for Reason {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Reason {}

impl Error for Reason {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as &(dyn Error + 'static))
    }
}

impl From<String> for Reason {
    fn from(text: String) -> Self {
        Self { text: text.into(), cause: None }
    }
}

impl From<&str> for Reason {
    fn from(text: &str) -> Self {
        Self { text: text.into(), cause: None }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::Reason;

    #[test]
    fn a_cause_is_found_by_its_type_also_behind_others() {
        let reason = Reason::because("no file: check the path", Reason::of(io::Error::from(io::ErrorKind::NotFound)));
        assert_eq!(reason.cause::<io::Error>().map(io::Error::kind), Some(io::ErrorKind::NotFound));
        assert_eq!((reason.to_string(), reason.starts_with("no file")), ("no file: check the path".to_owned(), true));
        assert!(Reason::from("alone").cause::<io::Error>().is_none());
    }
}
