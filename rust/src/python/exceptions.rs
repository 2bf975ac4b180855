//! The exceptions Python sees, and the one place that maps the engine's errors to them.

use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyKeyboardInterrupt, PyOSError};
use pyo3::prelude::*;

use crate::Error;

create_exception!(wsl, WslError, PyException, "The root of the errors that wsl raises itself.");
create_exception!(wsl, UsageError, WslError, "An option or argument that makes no sense here.");
create_exception!(
    wsl,
    DataError,
    WslError,
    "Input that is corrupt, cut short or not what it says."
);

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("WslError", py.get_type::<WslError>())?;
    module.add("UsageError", py.get_type::<UsageError>())?;
    module.add("DataError", py.get_type::<DataError>())
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        match error {
            Error::Usage(message) => UsageError::new_err(message),
            Error::Data(message) => DataError::new_err(message),
            Error::Store { uri, errno, message } => PyOSError::new_err((errno, message, uri)),
            Error::Cancelled => PyKeyboardInterrupt::new_err(()),
            Error::Io { path, source } => match source.raw_os_error() {
                // Three arguments make Python choose FileNotFoundError and its like by the number.
                Some(number) => {
                    let text = source.to_string();
                    let text = text.split(" (os error").next().unwrap_or_default().to_owned();
                    PyOSError::new_err((number, text, path))
                }
                None => PyOSError::new_err(format!("{}: {source}", path.display())),
            },
        }
    }
}
