//! The Python binding: converts arguments, releases the interpreter, maps errors, and nothing else.
//!
//! One file per part of the engine; `arrow` is the border that tables cross, `call` the one helper
//! through which every long call goes, `exceptions` the one mapping of errors.

mod arrow;
mod buffer;
mod call;
mod counts;
mod epoch;
mod exceptions;
mod index;
mod recipe;
mod selection;
mod spill;
mod spool;
mod steps;
mod storage;
mod vocabulary;

use pyo3::prelude::*;

/// The engine of wsl, compiled from Rust.
#[pymodule(name = "_core")]
fn core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    exceptions::register(module)?;
    module.add_class::<arrow::Table>()?;
    counts::register(module)?;
    index::register(module)?;
    epoch::register(module)?;
    selection::register(module)?;
    spill::register(module)?;
    spool::register(module)?;
    steps::register(module)?;
    storage::register(module)?;
    vocabulary::register(module)
}
