//! The footer of a Parquet file: where the chunks of a column lie.
//!
//! Everything that this reader does not know makes it say so (`None`): encryption, other encodings or
//! codecs, lists laid out in another way. A damaged footer too: whoever reads the file then says what
//! is wrong with it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::thrift::{Compact, kind};
use super::{Chunk, Codec, Fault, Kind, Levels, Parsed, Shape};

const MAGIC: &[u8; 4] = b"PAR1";

/// The largest footer that is read.
const MAX_FOOTER_BYTES: u64 = 64 << 20;

/// Numbers of `parquet.thrift`.
const INT32: i64 = 1;
const INT64: i64 = 2;
const FLOAT: i64 = 4;
const BYTE_ARRAY: i64 = 6;
const REPEATED: i64 = 2;
const CONVERTED_UTF8: i64 = 0;
const CONVERTED_LIST: i64 = 3;
const LOGICAL_STRING: i64 = 1;
const LOGICAL_LIST: i64 = 3;
const LOGICAL_INTEGER: i64 = 10;
/// Unsigned integers of 8 to 64 bits, and signed ones.
const CONVERTED_UNSIGNED: std::ops::RangeInclusive<i64> = 11..=14;
const CONVERTED_SIGNED: std::ops::RangeInclusive<i64> = 15..=18;
/// Plain, plain dictionary, runs, and dictionary in runs.
const ENCODINGS: [i64; 4] = [0, 2, 3, 8];

/// An element of the schema, a group or a column.
#[derive(Debug, Default)]
struct Element {
    physical: Option<i64>,
    repetition: Option<i64>,
    name: Vec<u8>,
    num_children: u64,
    converted: Option<i64>,
    logical: Option<i64>,
}

impl Element {
    fn nullable(&self) -> Option<bool> {
        match self.repetition? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

/// The chunks of `column` in a file, in the order of its row groups.
pub(super) fn chunks(path: &Path, column: &str, shape: Shape) -> Option<Vec<Chunk>> {
    let file = File::open(path).ok()?;
    let size = file.metadata().ok()?.len();
    let mut tail = [0; 8];
    let end = size.checked_sub(8)?;
    file.read_exact_at(&mut tail, end).ok()?;
    let [a, b, c, d, magic @ ..] = tail;
    let length = u64::from(u32::from_le_bytes([a, b, c, d]));
    let start = end.checked_sub(length).filter(|_| length <= MAX_FOOTER_BYTES)?;
    if &magic != MAGIC {
        return None;
    }
    let mut footer = vec![0; length as usize];
    file.read_exact_at(&mut footer, start).ok()?;
    let elements = read_schema(&footer).ok()?;
    let (leaf, form) = locate(&elements, column, shape)?;
    read_chunks(&footer, leaf, form, start).ok()?
}

/// How the values of a column are laid out.
type Form = (Kind, Levels);

fn read_schema(footer: &[u8]) -> Parsed<Vec<Element>> {
    let mut elements = Vec::new();
    Compact::new(footer).fields(|from, number, kind| {
        match (number, kind) {
            (2, kind::LIST) => from.structs(|from| {
                elements.push(read_element(from)?);
                Ok(())
            })?,
            // Encrypted.
            (8 | 9, _) => return Err(Fault::Wrong("it is encrypted")),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(elements)
}

fn read_element(from: &mut Compact<'_>) -> Parsed<Element> {
    let mut element = Element::default();
    from.fields(|from, number, kind| {
        match (number, kind) {
            (1, kind::I32) => element.physical = Some(from.int()?),
            (3, kind::I32) => element.repetition = Some(from.int()?),
            (4, kind::BYTES) => element.name = from.bytes()?.to_vec(),
            (5, kind::I32) => {
                let number = from.int()?;
                element.num_children =
                    u64::try_from(number).map_err(|_| Fault::Wrong("a negative number"))?;
            }
            (6, kind::I32) => element.converted = Some(from.int()?),
            (10, kind::STRUCT) => from.fields(|_, number, _| {
                element.logical = Some(number);
                Ok(false)
            })?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(element)
}

/// The number of the column among all that hold values, and its form, where it is of this shape.
fn locate(elements: &[Element], column: &str, shape: Shape) -> Option<(usize, Form)> {
    let (root, elements) = elements.split_first()?;
    let (mut at, mut leaf, mut found) = (0, 0, None);
    for _ in 0..root.num_children {
        let element = elements.get(at)?;
        if element.name == column.as_bytes() {
            if found.is_some() {
                return None;
            }
            let form = match shape {
                Shape::Texts => (Kind::Bytes, levels_of_list(elements.get(at..at + 3)?)?),
                Shape::Text => (Kind::Bytes, levels_of_text(element)?),
                Shape::Number => form_of_number(element)?,
            };
            found = Some((leaf, form));
        }
        let mut left = 1_u64;
        while left > 0 {
            let element = elements.get(at)?;
            at += 1;
            left = (left - 1).checked_add(element.num_children)?;
            leaf += usize::from(element.num_children == 0);
        }
    }
    found
}

fn levels_of_text(text: &Element) -> Option<Levels> {
    let is_text = text.logical == Some(LOGICAL_STRING) || text.converted == Some(CONVERTED_UTF8);
    let fits = is_text && text.num_children == 0 && text.physical == Some(BYTE_ARRAY);
    let text_nullable = fits.then(|| text.nullable())??;
    Some(Levels { is_list: false, list_nullable: false, text_nullable })
}

/// An integer of 32 or 64 bits, or a number of float32.
fn form_of_number(number: &Element) -> Option<Form> {
    let is_unsigned = number.converted.is_some_and(|kind| CONVERTED_UNSIGNED.contains(&kind));
    let is_plain = number.converted.is_none() && number.logical.is_none();
    let is_integer = is_plain
        || (number.converted.is_some_and(|kind| CONVERTED_SIGNED.contains(&kind)) || is_unsigned)
            && number.logical.is_none_or(|kind| kind == LOGICAL_INTEGER);
    let kind = match (number.physical?, is_unsigned) {
        (INT32, false) if is_integer => Kind::I32,
        (INT32, true) if is_integer => Kind::U32,
        (INT64, false) if is_integer => Kind::I64,
        (INT64, true) if is_integer => Kind::U64,
        (FLOAT, _) if is_plain => Kind::F32,
        _ => return None,
    };
    let text_nullable = number.nullable().filter(|_| number.num_children == 0)?;
    Some((kind, Levels { is_list: false, list_nullable: false, text_nullable }))
}

/// The levels of a list, its repeated group and its text.
fn levels_of_list(elements: &[Element]) -> Option<Levels> {
    let [list, group, text] = elements else { return None };
    let is_list = list.converted == Some(CONVERTED_LIST) || list.logical == Some(LOGICAL_LIST);
    let is_old = group.name == b"array" || group.name.ends_with(b"_tuple");
    let is_text = match (text.logical, text.converted) {
        (Some(logical), _) => logical == LOGICAL_STRING,
        (None, converted) => converted.is_none_or(|converted| converted == CONVERTED_UTF8),
    };
    let fits = is_list
        && list.num_children == 1
        && group.repetition == Some(REPEATED)
        && group.num_children == 1
        && !is_old
        && text.num_children == 0
        && text.physical == Some(BYTE_ARRAY)
        && is_text;
    if !fits {
        return None;
    }
    let (list_nullable, text_nullable) = (list.nullable()?, text.nullable()?);
    Some(Levels { is_list: true, list_nullable, text_nullable })
}

/// The chunks of a column; `None` where one is laid out in another way. Data end before `limit`.
fn read_chunks(footer: &[u8], leaf: usize, form: Form, limit: u64) -> Parsed<Option<Vec<Chunk>>> {
    let mut chunks = Vec::new();
    let mut num_rows = None;
    Compact::new(footer).fields(|from, number, kind| {
        match (number, kind) {
            (3, kind::I64) => num_rows = Some(from.int()?),
            (4, kind::LIST) => from.structs(|from| {
                chunks.push(read_group(from, leaf, form, limit)?);
                Ok(())
            })?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let chunks: Option<Vec<Chunk>> = chunks.into_iter().collect();
    let sum = |chunks: &Vec<Chunk>| chunks.iter().map(|chunk| chunk.num_rows as i64).sum::<i64>();
    Ok(chunks.filter(|chunks| num_rows == Some(sum(chunks))))
}

fn read_group(
    from: &mut Compact<'_>,
    leaf: usize,
    form: Form,
    limit: u64,
) -> Parsed<Option<Chunk>> {
    let (mut column, mut num_rows) = (None, None);
    from.fields(|from, number, kind| {
        match (number, kind) {
            (1, kind::LIST) => {
                let mut at = 0;
                from.structs(|from| {
                    let found = read_column(from)?;
                    if at == leaf {
                        column = Some(found);
                    }
                    at += 1;
                    Ok(())
                })?;
            }
            (3, kind::I64) => num_rows = Some(from.int()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let num_rows = num_rows.and_then(|number| u32::try_from(number).ok());
    let found = column.zip(num_rows);
    Ok(found.and_then(|(column, num_rows)| column.chunk(form, u64::from(num_rows), limit)))
}

/// What the footer says of a chunk.
#[derive(Debug, Default)]
struct Column {
    is_foreign: bool,
    physical: Option<i64>,
    encodings: Vec<i64>,
    codec: Option<i64>,
    num_values: Option<i64>,
    size: Option<i64>,
    data: Option<i64>,
    dictionary: Option<i64>,
}

fn read_column(from: &mut Compact<'_>) -> Parsed<Column> {
    let mut column = Column::default();
    from.fields(|from, number, kind| {
        match (number, kind) {
            (3, kind::STRUCT) => read_meta(from, &mut column)?,
            // In another file, or encrypted.
            (1 | 8 | 9, _) => {
                column.is_foreign = true;
                return Ok(false);
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(column)
}

fn read_meta(from: &mut Compact<'_>, column: &mut Column) -> Parsed<()> {
    from.fields(|from, number, kind| {
        let place = match (number, kind) {
            (1, kind::I32) => &mut column.physical,
            (2, kind::LIST) => {
                let (number, _) = from.list()?;
                for _ in 0..number {
                    column.encodings.push(from.int()?);
                }
                return Ok(true);
            }
            (4, kind::I32) => &mut column.codec,
            (5, kind::I64) => &mut column.num_values,
            (7, kind::I64) => &mut column.size,
            (9, kind::I64) => &mut column.data,
            (11, kind::I64) => &mut column.dictionary,
            _ => return Ok(false),
        };
        *place = Some(from.int()?);
        Ok(true)
    })
}

impl Column {
    fn chunk(&self, form: Form, num_rows: u64, limit: u64) -> Option<Chunk> {
        let (kind, levels) = form;
        let physical = match kind {
            Kind::Bytes => BYTE_ARRAY,
            Kind::I32 | Kind::U32 => INT32,
            Kind::I64 | Kind::U64 => INT64,
            Kind::F32 => FLOAT,
        };
        let known = self.encodings.iter().all(|encoding| ENCODINGS.contains(encoding));
        if self.is_foreign || !known || self.physical != Some(physical) {
            return None;
        }
        let codec = match self.codec? {
            0 => Codec::Plain,
            1 => Codec::Snappy,
            6 => Codec::Zstd,
            _ => return None,
        };
        let data = u64::try_from(self.data?).ok()?;
        let dictionary = self.dictionary.and_then(|offset| u64::try_from(offset).ok());
        let start = dictionary.filter(|&offset| offset > 0).map_or(data, |offset| offset.min(data));
        let end = start.checked_add(u64::try_from(self.size?).ok()?)?;
        let num_values = u64::try_from(self.num_values?).ok()?;
        // Every record has a value at least, if only for its being empty.
        let fits = start >= MAGIC.len() as u64 && end <= limit && num_values >= num_rows;
        fits.then_some(Chunk { start, end, codec, kind, levels, num_rows, num_values })
    }
}
