//! The one way into a long call: interpreter released, Ctrl-C heard, progress reported.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use pyo3::prelude::*;

use crate::job::Job;
use crate::{Error, Result};

/// How often the waiting thread looks for Ctrl-C and reports progress.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Runs `work` on a thread of its own with the interpreter released.
///
/// The calling thread waits: every tenth of a second it runs Python's signal handlers and calls
/// `progress(done)` with the units done since the start. An exception from either (Ctrl-C's
/// `KeyboardInterrupt` above all) cancels the job; once the work has stopped it is raised.
pub(super) fn long_call<T: Send>(
    py: Python<'_>,
    progress: Option<&Bound<'_, PyAny>>,
    work: impl FnOnce(&Job) -> Result<T> + Send,
) -> PyResult<T> {
    let progress = progress.map(|callback| callback.clone().unbind());
    let job = Job::new();
    let (outcome, raised) = py.detach(|| run_beside(&job, progress.as_ref(), work));
    match raised {
        Some(error) => Err(error),
        None => Ok(outcome?),
    }
}

fn run_beside<T: Send>(
    job: &Job,
    progress: Option<&Py<PyAny>>,
    work: impl FnOnce(&Job) -> Result<T> + Send,
) -> (Result<T>, Option<PyErr>) {
    std::thread::scope(|scope| {
        let (finished, waiting) = channel::<()>();
        let worker = scope.spawn(move || {
            // Dropped when the work ends, by return or by panic; that wakes the waiting thread.
            let _finished = finished;
            work(job)
        });
        let mut raised = None;
        while let Err(RecvTimeoutError::Timeout) = waiting.recv_timeout(POLL_INTERVAL) {
            if raised.is_none() {
                raised = look_up(job, progress).err();
                if raised.is_some() {
                    job.cancel();
                }
            }
        }
        let outcome = worker.join().unwrap_or_else(|_| {
            Err(Error::data("the engine failed an internal check; please report this as a bug"))
        });
        if raised.is_none() && outcome.is_ok() {
            raised = report(job, progress).err();
        }
        (outcome, raised)
    })
}

fn look_up(job: &Job, progress: Option<&Py<PyAny>>) -> PyResult<()> {
    Python::attach(|py| py.check_signals())?;
    report(job, progress)
}

fn report(job: &Job, progress: Option<&Py<PyAny>>) -> PyResult<()> {
    match progress {
        Some(callback) => Python::attach(|py| callback.call1(py, (job.done(),)).map(drop)),
        None => Ok(()),
    }
}
