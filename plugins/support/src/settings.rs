//! Files of settings beside a model's weights, as Hugging Face's libraries keep them, and what they claim.

use std::path::Path;

use aihost_plugin_api::{Error, ErrorKind, Result};
use serde::de::DeserializeOwned;

/// Most bytes of a file of settings or of a template.
const FILE_BYTES: u64 = 8 << 20;

/// A file of settings, for whoever reads what it claims.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a>(pub &'a Path);

impl Settings<'_> {
    /// Its text; nothing if there is no such file.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptFile`] if it is too long, or no text.
    pub fn text(&self) -> Result<Option<String>> {
        let Ok(metadata) = self.0.metadata() else { return Ok(None) };
        if metadata.len() > FILE_BYTES {
            return Err(self.corrupt(format!("it has {} bytes, of at most {FILE_BYTES}", metadata.len())));
        }
        std::fs::read_to_string(self.0).map(Some).map_err(|error| self.corrupt(error.to_string()))
    }

    /// Its JSON; nothing if there is no such file.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptFile`] if it is too long, or not of that form.
    pub fn json<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        let read = |text: String| serde_json::from_str(&text).map_err(|error| self.corrupt(error.to_string()));
        self.text()?.map(read).transpose()
    }

    /// A size that it claims.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptFile`] unless it is from 1 to `most`.
    pub fn size(&self, name: &str, value: u64, most: u64) -> Result<usize> {
        if !(1..=most).contains(&value) {
            return Err(self.corrupt(format!("`{name}` is {value} and must be from 1 to {most}")));
        }
        usize::try_from(value).map_err(Error::internal)
    }

    /// A number that it claims.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptFile`] unless it is above 0.
    pub fn positive(&self, name: &str, value: f64) -> Result<f32> {
        if !(value.is_finite() && value > 0.0) {
            return Err(self.corrupt(format!("`{name}` is {value} and must be above 0")));
        }
        Ok(value as f32)
    }

    /// The error for what it has wrong.
    pub fn corrupt(&self, what: impl AsRef<str>) -> Error {
        Error::new(ErrorKind::CorruptFile, format!("{}: {}; fetch it again", self.0.display(), what.as_ref()))
    }

    /// The error for what is not served.
    pub fn unsupported(&self, what: impl AsRef<str>) -> Error {
        Error::new(ErrorKind::Unsupported, format!("{}: {}", self.0.display(), what.as_ref()))
    }

    /// The error where it is not there; `needs` says what for it is needed.
    pub fn missing(&self, needs: &str) -> Error {
        Error::new(ErrorKind::MissingFile, format!("{} does not exist; {needs}", self.0.display()))
    }
}
