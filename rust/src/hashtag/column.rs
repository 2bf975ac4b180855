//! The column of hashtags of a record batch, in every form that has text or lists of text.

use std::ops::Range;

use arrow_array::cast::AsArray;
use arrow_array::types::{ByteArrayType, ByteViewType};
use arrow_array::{Array, ArrayRef, GenericByteArray, GenericByteViewArray, OffsetSizeTrait};
use arrow_buffer::{Buffer, NullBuffer, OffsetBuffer};
use arrow_schema::DataType;

use super::{FEW, INLINE, Key, Tag, VIEW_INLINE};
use crate::{Error, Result};

/// A column of text in any of Arrow's layouts, read as bytes: nothing is assumed to be UTF-8.
#[derive(Debug, Clone)]
enum Texts {
    Small(Offsets<i32>),
    Large(Offsets<i64>),
    View(Views),
    Dictionary { keys: Vec<usize>, nulls: Option<NullBuffer>, values: Box<Texts> },
    Nulls,
}

#[derive(Debug, Clone)]
struct Offsets<O: arrow_buffer::ArrowNativeType> {
    offsets: arrow_buffer::ScalarBuffer<O>,
    data: Buffer,
    nulls: Option<NullBuffer>,
}

impl<O: OffsetSizeTrait> Offsets<O> {
    fn new<T: ByteArrayType<Offset = O>>(array: &GenericByteArray<T>) -> Self {
        Self {
            offsets: array.offsets().inner().clone(),
            data: array.values().clone(),
            nulls: array.nulls().cloned(),
        }
    }

    fn get(&self, row: usize) -> Option<&[u8]> {
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            return None;
        }
        self.data.get(self.offsets[row].as_usize()..self.offsets[row + 1].as_usize())
    }

    #[inline]
    fn raw(&self, row: usize) -> Raw<'_> {
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            return Raw::Null;
        }
        Raw::of(&self.data, self.offsets[row].as_usize(), self.offsets[row + 1].as_usize())
    }
}

/// Views: 16 bytes a text, with the text itself where it has at most 12 bytes.
///
/// Nothing in a view is trusted; one that points outside its buffers reads as null.
#[derive(Debug, Clone)]
struct Views {
    views: arrow_buffer::ScalarBuffer<u128>,
    buffers: Vec<Buffer>,
    nulls: Option<NullBuffer>,
}

impl Views {
    fn new<T: ByteViewType + ?Sized>(array: &GenericByteViewArray<T>) -> Self {
        Self {
            views: array.views().clone(),
            buffers: array.data_buffers().to_vec(),
            nulls: array.nulls().cloned(),
        }
    }

    fn view(&self, row: usize) -> Option<u128> {
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            return None;
        }
        self.views.get(row).copied()
    }

    fn get(&self, row: usize) -> Option<&[u8]> {
        let view = self.view(row)?;
        let length = view as u32 as usize;
        if length > VIEW_INLINE {
            return self.outside(view);
        }
        let bytes: &[u8] = self.views.inner().as_slice();
        bytes.get(row * 16 + 4..row * 16 + 4 + length)
    }

    #[inline]
    fn raw(&self, view: u128) -> Raw<'_> {
        let length = view as u32 as usize;
        if length <= VIEW_INLINE {
            return Raw::Short(view >> 32, length);
        }
        let start = (view >> 96) as u32 as usize;
        let buffer = self.buffers.get((view >> 64) as u32 as usize);
        buffer.map_or(Raw::Null, |buffer| Raw::of(buffer, start, start + length))
    }

    fn outside(&self, view: u128) -> Option<&[u8]> {
        let length = view as u32 as usize;
        let buffer = self.buffers.get((view >> 64) as u32 as usize)?;
        let start = (view >> 96) as u32 as usize;
        buffer.get(start..start + length)
    }
}

/// A text as it is in its column.
pub(super) enum Raw<'a> {
    /// No text.
    Null,
    /// At most [`INLINE`] bytes, the first lowest, with whatever follows them above.
    Short(u128, usize),
    /// The bytes.
    Long(&'a [u8]),
}

impl<'a> Raw<'a> {
    /// The text; that of a short one is laid into `buffer`.
    pub(super) fn bytes<'b>(&self, buffer: &'b mut [u8; 16]) -> &'b [u8]
    where
        'a: 'b,
    {
        match *self {
            Self::Null => &[],
            Self::Short(bits, length) => {
                *buffer = bits.to_le_bytes();
                &buffer[..length]
            }
            Self::Long(text) => text,
        }
    }

    /// The bytes of a short text, zero behind it, and its length.
    pub(super) fn short(&self) -> Option<(u128, usize)> {
        match *self {
            Self::Short(bits, length) => Some((bits & !(u128::MAX << (8 * length)), length)),
            _ => None,
        }
    }

    #[inline]
    fn of(data: &'a [u8], start: usize, end: usize) -> Self {
        let length = end.wrapping_sub(start);
        if length <= INLINE
            && let Some(Ok(bytes)) = data.get(start..start.wrapping_add(16)).map(TryInto::try_into)
        {
            return Self::Short(u128::from_le_bytes(bytes), length);
        }
        data.get(start..end).map_or(Self::Null, Self::Long)
    }
}

impl Texts {
    fn new(array: &ArrayRef) -> Option<Self> {
        Some(match array.data_type() {
            DataType::Utf8 => Self::Small(Offsets::new(array.as_string::<i32>())),
            DataType::Binary => Self::Small(Offsets::new(array.as_binary::<i32>())),
            DataType::LargeUtf8 => Self::Large(Offsets::new(array.as_string::<i64>())),
            DataType::LargeBinary => Self::Large(Offsets::new(array.as_binary::<i64>())),
            DataType::Utf8View => Self::View(Views::new(array.as_string_view())),
            DataType::BinaryView => Self::View(Views::new(array.as_binary_view())),
            DataType::Null => Self::Nulls,
            DataType::Dictionary(..) => {
                let array = array.as_any_dictionary();
                if array.values().is_empty() {
                    Self::Nulls
                } else {
                    Self::Dictionary {
                        keys: array.normalized_keys(),
                        nulls: array.keys().nulls().cloned(),
                        values: Box::new(Self::new(array.values())?),
                    }
                }
            }
            _ => return None,
        })
    }

    fn get(&self, row: usize) -> Option<&[u8]> {
        match self {
            Self::Small(array) => array.get(row),
            Self::Large(array) => array.get(row),
            Self::View(array) => array.get(row),
            Self::Dictionary { keys, nulls, values } => {
                let null = nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
                if null { None } else { values.get(keys[row]) }
            }
            Self::Nulls => None,
        }
    }

    #[inline]
    fn raw(&self, row: usize) -> Raw<'_> {
        match self {
            Self::Small(array) => array.raw(row),
            Self::Large(array) => array.raw(row),
            Self::View(array) => match array.view(row) {
                None => Raw::Null,
                Some(view) => array.raw(view),
            },
            _ => self.get(row).map_or(Raw::Null, Raw::Long),
        }
    }
}

/// Which texts belong to a record.
#[derive(Debug, Clone)]
enum Rows {
    Text,
    Small(OffsetBuffer<i32>),
    Large(OffsetBuffer<i64>),
    View { starts: Vec<usize>, sizes: Vec<usize> },
    Fixed(usize),
    Nulls,
}

/// The column of hashtags of one record batch.
///
/// Lists (of 32 or 64 bit offsets, list views, fixed size) of texts, or one text a record, which is
/// split; a text is UTF-8 or binary, of 32 or 64 bit offsets or views, or dictionary-encoded.
#[derive(Debug, Clone)]
pub struct TagColumn {
    rows: Rows,
    nulls: Option<NullBuffer>,
    texts: Texts,
    len: usize,
}

impl TagColumn {
    /// Takes a column; `name` is for the message when it is of another type.
    pub fn new(array: &ArrayRef, name: &str) -> Result<Self> {
        let (rows, values) = match array.data_type() {
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                (Rows::Small(list.offsets().clone()), list.values())
            }
            DataType::LargeList(_) => {
                let list = array.as_list::<i64>();
                (Rows::Large(list.offsets().clone()), list.values())
            }
            DataType::ListView(_) => {
                let list = array.as_list_view::<i32>();
                (view_rows(list.offsets(), list.sizes()), list.values())
            }
            DataType::LargeListView(_) => {
                let list = array.as_list_view::<i64>();
                (view_rows(list.offsets(), list.sizes()), list.values())
            }
            DataType::FixedSizeList(_, size) => {
                let size = usize::try_from(*size).unwrap_or_default();
                (Rows::Fixed(size), array.as_fixed_size_list().values())
            }
            DataType::Null => (Rows::Nulls, array),
            _ => (Rows::Text, array),
        };
        let texts = Texts::new(values).ok_or_else(|| {
            Error::usage(format!(
                "column {name:?}: hashtags are read from a column of text or of lists of text, and \
                 this one is of type {}; choose another column or cast it",
                array.data_type()
            ))
        })?;
        Ok(Self { rows, nulls: array.nulls().cloned(), texts, len: array.len() })
    }

    /// A column of texts that are views into `data`: those of the first record begin at the first of
    /// `starts`, and so on; at the last one those of the last record end. They ascend.
    pub(crate) fn of_views(starts: Vec<i32>, views: Vec<u128>, data: Buffer) -> Self {
        let views = Views { views: views.into(), buffers: vec![data], nulls: None };
        let none = Self { rows: Rows::Nulls, nulls: None, texts: Texts::View(views), len: 0 };
        none.with_starts(starts)
    }

    /// The same texts with other records.
    pub(crate) fn with_starts(self, starts: Vec<i32>) -> Self {
        let len = starts.len().saturating_sub(1);
        Self { rows: Rows::Small(OffsetBuffer::new(starts.into())), nulls: None, len, ..self }
    }

    /// One record whose texts are in `bytes`, each up to its end in `ends`.
    pub(crate) fn of_one_record(bytes: Vec<u8>, ends: Vec<i64>) -> Self {
        let rows = Rows::Fixed(ends.len());
        let offsets: Vec<i64> = std::iter::once(0).chain(ends).collect();
        let texts = Offsets { offsets: offsets.into(), data: Buffer::from_vec(bytes), nulls: None };
        Self { rows, nulls: None, texts: Texts::Large(texts), len: 1 }
    }

    /// The memory of the views, to be used again; empty where others use it too.
    pub(crate) fn into_views(self) -> Vec<u128> {
        match self.texts {
            Texts::View(views) => views.views.into_inner().into_vec().unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether a record is one text, to be split.
    pub fn is_text(&self) -> bool {
        matches!(self.rows, Rows::Text)
    }

    #[inline]
    pub(super) fn raw(&self, text: usize) -> Raw<'_> {
        self.texts.raw(text)
    }

    /// The texts of some records as views, and in `lens` how many each record has; `None` where a text
    /// or record is null, a record has more than [`FEW`] texts, or they are in another layout.
    #[inline]
    pub(crate) fn views(&self, rows: Range<usize>, lens: &mut [u8]) -> Option<&[u128]> {
        let Texts::View(texts) = &self.texts else { return None };
        if self.nulls.is_some() || texts.nulls.is_some() {
            return None;
        }
        let range = match &self.rows {
            Rows::Small(offsets) => few_each(offsets.get(rows.start..=rows.end)?, lens),
            Rows::Large(offsets) => few_each(offsets.get(rows.start..=rows.end)?, lens),
            _ => None,
        };
        texts.views.get(range?)
    }

    /// The key of the tag that a text is, if it is a tag in normal form and a view that has its
    /// text itself; else the key of no tag, or of another one.
    #[inline(always)]
    pub(crate) fn key(&self, text: usize) -> Key {
        match &self.texts {
            Texts::View(texts) => match texts.views.get(text) {
                Some(&view) if view as u32 as usize <= VIEW_INLINE => Key::of_view(view),
                _ => Key::NONE,
            },
            _ => Key::NONE,
        }
    }

    /// The tag of a text of plain characters, that needs no more than lower case.
    #[inline(always)]
    pub(crate) fn plain(&self, text: usize) -> Option<Tag<'_>> {
        match self.raw(text) {
            Raw::Null => None,
            Raw::Short(bits, length) => Tag::plain(bits, length),
            Raw::Long(text) => Tag::plain_long(text),
        }
    }

    /// A text that is a view, where it is too long for a key.
    #[inline(always)]
    pub(crate) fn long_text(&self, view: u128) -> Option<&[u8]> {
        match &self.texts {
            Texts::View(texts) if view as u32 as usize > INLINE => texts.outside(view),
            _ => None,
        }
    }

    /// A text that is a view.
    #[inline]
    pub(super) fn view(&self, view: u128) -> Raw<'_> {
        match &self.texts {
            Texts::View(texts) => texts.raw(view),
            _ => Raw::Null,
        }
    }

    /// The bytes of a text.
    pub(crate) fn text(&self, text: usize) -> Option<&[u8]> {
        self.texts.get(text)
    }

    /// The texts of a record.
    #[inline(always)]
    pub(crate) fn range(&self, row: usize) -> Range<usize> {
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            return 0..0;
        }
        match &self.rows {
            Rows::Text => row..row + 1,
            Rows::Small(offsets) => offsets[row] as usize..offsets[row + 1] as usize,
            Rows::Large(offsets) => offsets[row] as usize..offsets[row + 1] as usize,
            Rows::View { starts, sizes } => starts[row]..starts[row] + sizes[row],
            Rows::Fixed(size) => row * size..(row + 1) * size,
            Rows::Nulls => 0..0,
        }
    }
}

/// From where to where the texts reach, where none of the records has more than [`FEW`].
#[inline]
fn few_each<O: OffsetSizeTrait>(offsets: &[O], lens: &mut [u8]) -> Option<Range<usize>> {
    let mut longest = 0;
    for (pair, len) in offsets.windows(2).zip(lens) {
        let length = pair[1].as_usize().wrapping_sub(pair[0].as_usize());
        *len = length as u8;
        longest = longest.max(length);
    }
    let (first, last) = (offsets.first()?, offsets.last()?);
    (longest <= FEW).then_some(first.as_usize()..last.as_usize())
}

fn view_rows<O: OffsetSizeTrait>(offsets: &[O], sizes: &[O]) -> Rows {
    Rows::View {
        starts: offsets.iter().map(|offset| offset.as_usize()).collect(),
        sizes: sizes.iter().map(|size| size.as_usize()).collect(),
    }
}
