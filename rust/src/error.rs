//! What can go wrong, sorted by who can repair it.
//!
//! The binding maps every variant to one Python exception and the command line to one exit code,
//! so a caller can distinguish a wrong option from a corrupt file. Messages are one paragraph: what
//! was attempted, on what, what was expected and found, and what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The result of every fallible call of the engine.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call of the engine did not succeed.
#[derive(Debug)]
pub enum Error {
    /// Options that make no sense, alone or with this input (exit code 2).
    Usage(String),
    /// Input that is corrupt, cut short, of another version or of another kind (exit code 3).
    Data(String),
    /// The operating system refused something on a file (exit code 1).
    Io { path: PathBuf, source: io::Error },
    /// An object store refused something (exit code 1); `errno` is what a file system would return.
    Store { uri: String, errno: i32, message: String },
    /// The caller asked to stop (exit code 130).
    Cancelled,
}

impl Error {
    /// Wrong usage.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    /// Bad data.
    pub fn data(message: impl Into<String>) -> Self {
        Self::Data(message.into())
    }

    /// The same about something in `place`.
    #[must_use]
    pub fn within(self, place: &impl std::fmt::Display) -> Self {
        match self {
            Self::Usage(message) => Self::Usage(format!("{place}: {message}")),
            Self::Data(message) => Self::Data(format!("{place}: {message}")),
            other => other,
        }
    }

    /// A refusal of the operating system, with the path it concerned.
    pub fn io(path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), source }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(message) | Self::Data(message) => f.write_str(message),
            Self::Io { path, source } => write!(f, "{}: {source}", path.display()),
            Self::Store { uri, message, .. } => write!(f, "{uri}: {message}"),
            Self::Cancelled => f.write_str("interrupted"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<arrow_schema::ArrowError> for Error {
    fn from(error: arrow_schema::ArrowError) -> Self {
        let text = error.to_string();
        // The engine's own message comes back from a stream with a word before it.
        if let Some((_, own)) = text.rsplit_once("External error: ") {
            return Self::data(own);
        }
        let said = text.rsplit_once("Producer error: ").map_or(text.as_str(), |(_, said)| said);
        Self::Data(format!("the records could not be read: {said}"))
    }
}
