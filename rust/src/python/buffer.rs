//! Arrays across the border: any C-contiguous buffer in, bytes out.

use arrow_buffer::ToByteSlice;
use pyo3::buffer::{Element, PyBuffer};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes};

use super::exceptions::UsageError;

/// Copies a C-contiguous buffer of `T`.
pub(super) fn values<T: Element>(py: Python<'_>, buffer: &PyBuffer<T>) -> PyResult<Vec<T>> {
    if !buffer.is_c_contiguous() {
        return Err(UsageError::new_err(
            "expected a C-contiguous array; numpy.ascontiguousarray makes one",
        ));
    }
    buffer.to_vec(py)
}

/// The numbers of a C-contiguous buffer where they are, for as long as it is held; nothing where it
/// is not contiguous.
///
/// For what must be read as fast as memory gives it. Whoever lends a buffer must not write to it
/// during the call, which the public docstrings say.
#[allow(unsafe_code)]
pub(super) fn borrowed<T: Element>(buffer: &PyBuffer<T>) -> &[T] {
    if !buffer.is_c_contiguous() || buffer.item_count() == 0 {
        return &[];
    }
    // SAFETY: the buffer was checked by pyo3 to hold aligned elements of `T`, of which any bytes are
    // valid, and here to be contiguous and not empty; Python keeps its memory in place as long as
    // the buffer is held, and the caller's promise is that nobody writes to it.
    unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<T>(), buffer.item_count()) }
}

/// Copies ordinals; a negative one is refused.
pub(super) fn ordinals(py: Python<'_>, buffer: &PyBuffer<i64>) -> PyResult<Vec<u64>> {
    let number = |ordinal: i64| {
        u64::try_from(ordinal)
            .map_err(|_| UsageError::new_err(format!("there is no sample {ordinal}")))
    };
    values(py, buffer)?.into_iter().map(number).collect()
}

/// The numbers of `values` as bytes, in the machine's order.
pub(super) fn bytes<'py, T>(py: Python<'py>, values: &[T]) -> Bound<'py, PyBytes>
where
    [T]: ToByteSlice,
{
    PyBytes::new(py, values.to_byte_slice())
}

/// The same, writable.
pub(super) fn writable<'py, T>(py: Python<'py>, values: &[T]) -> Bound<'py, PyByteArray>
where
    [T]: ToByteSlice,
{
    PyByteArray::new(py, values.to_byte_slice())
}

/// A bytes object, and its memory of `size` bytes to be written before anybody else sees the object.
///
/// The memory is not cleared, which would take as long as reading an image.
#[allow(unsafe_code)]
pub(super) fn room<'py>(
    py: Python<'py>,
    size: usize,
) -> PyResult<(Bound<'py, PyBytes>, &'py mut [u8])> {
    // Python shares the objects of no byte and of one.
    let length = isize::try_from(size).ok().filter(|&length| length > 1);
    let length =
        length.ok_or_else(|| UsageError::new_err(format!("no room is made of {size} bytes")))?;
    // SAFETY: without a source Python makes a new object of this size, which nobody else refers to, and
    // its memory stays in place as long as the object is held, which is longer than the slice is used.
    // Whatever bytes are there are valid ones, and none are read before they are written.
    unsafe {
        let object = ffi::PyBytes_FromStringAndSize(std::ptr::null(), length);
        let object = Bound::from_owned_ptr_or_err(py, object)?.cast_into::<PyBytes>()?;
        let memory = ffi::PyBytes_AsString(object.as_ptr()).cast::<u8>();
        Ok((object, std::slice::from_raw_parts_mut(memory, size)))
    }
}
