//! Hashtags and scored pairs out of Parquet files, without a detour through tables.
//!
//! Writers of Parquet put what they see often into a dictionary, one for each chunk of a column, and
//! then write numbers. Whoever counts or encodes tags wants just that: each entry is normalized and
//! looked up once, and the numbers are counted. A reader that hands out texts (Polars) undoes the
//! dictionary first, and that costs more than the counting.
//!
//! Of scored pairs nearly all are below what their class has already, so that most samples need not be
//! looked at.
//!
//! This is no reader of Parquet at large. It takes local files whose column is a list of texts, or whose
//! columns are numbers, in the common layouts: pages plain or with a dictionary, uncompressed, Snappy or Zstandard. Of all else
//! [`ParquetTags::open`] and [`ParquetPairs::open`] say that it is not for it, before anything is read, and Polars reads that.
//!
//! [`thrift`] reads the serialization of the metadata, [`footer`] finds the chunks of the column,
//! [`pages`] cuts a chunk into pages and unpacks them, [`runs`] reads runs of small numbers, and
//! [`lists`] puts records together again, [`flat`] pairs. Lengths and offsets are taken for hostile all the way: each
//! is held against what there is, memory is bounded by [`pages::MAX_PAGE_BYTES`], and what is wrong is
//! an error that says where.
//! <https://github.com/apache/parquet-format>

mod flat;
mod footer;
mod lists;
mod pages;
mod runs;
mod thrift;

use std::path::{Path, PathBuf};

use crate::{Error, Result};
pub(crate) use flat::{PairReader, Pairs};
pub(crate) use lists::{ListReader, Numbers, Piece};

/// What is wrong with some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// They end too early.
    Short,
    /// They are not what the format asks for.
    Wrong(&'static str),
}

type Parsed<T> = std::result::Result<T, Fault>;

impl Fault {
    fn said(self) -> &'static str {
        match self {
            Self::Short => "it ends too early",
            Self::Wrong(what) => what,
        }
    }
}

/// How the pages of a chunk are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Codec {
    Plain,
    Snappy,
    Zstd,
}

/// What a record has of a column: a list of texts, one text, or one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Texts,
    Text,
    Number,
}

/// What the values of a column are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bytes,
    I32,
    U32,
    I64,
    U64,
    F32,
}

/// The levels of a column, and which of them can be null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Levels {
    is_list: bool,
    list_nullable: bool,
    text_nullable: bool,
}

impl Levels {
    /// The definition level of a text that is there.
    fn highest(self) -> u32 {
        u32::from(self.is_list) + u32::from(self.list_nullable) + u32::from(self.text_nullable)
    }
}

/// The chunk of the column in one row group.
#[derive(Debug, Clone, Copy)]
struct Chunk {
    start: u64,
    end: u64,
    codec: Codec,
    kind: Kind,
    levels: Levels,
    num_rows: u64,
    /// Texts, and what stands for nulls and empty lists.
    num_values: u64,
}

/// A column of hashtags in Parquet files.
#[derive(Debug)]
pub struct ParquetTags {
    files: Vec<PathBuf>,
    /// Chunks in the order of files and row groups, each with its file.
    chunks: Vec<(usize, Chunk)>,
}

impl ParquetTags {
    /// The column in these files, read by their footers alone; `None` where one of them is not laid out
    /// as this reader knows it, or cannot be opened.
    pub fn open<P: AsRef<Path>>(files: &[P], column: &str) -> Option<Self> {
        Self::of_shape(files, column, Shape::Texts)
    }

    fn of_shape<P: AsRef<Path>>(files: &[P], column: &str, shape: Shape) -> Option<Self> {
        let mut chunks = Vec::new();
        for (number, file) in files.iter().enumerate() {
            let found = footer::chunks(file.as_ref(), column, shape)?;
            chunks.extend(found.into_iter().map(|chunk| (number, chunk)));
        }
        let files = files.iter().map(|file| file.as_ref().to_path_buf()).collect();
        Some(Self { files, chunks })
    }

    /// Chunks in all.
    pub(crate) fn num_chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Records of all files.
    pub fn num_records(&self) -> u64 {
        self.chunks.iter().map(|(_, chunk)| chunk.num_rows).sum()
    }

    /// Reads the chunk numbered `number`.
    pub(crate) fn read(&self, number: usize) -> Result<ListReader<'_>> {
        let (file, chunk) = self.chunks[number];
        ListReader::new(&self.files[file], chunk)
    }
}

/// The most records of a row group that are held in memory at once.
const MAX_GROUP_ROWS: u64 = 1 << 20;

/// Keys and hashtags in Parquet files.
#[derive(Debug)]
pub struct ParquetRecords {
    pub(crate) tags: ParquetTags,
    /// A column of one text for each record.
    pub(crate) keys: ParquetTags,
    pub(crate) key_column: String,
}

impl ParquetRecords {
    /// The columns in these files; `None` as for [`ParquetTags::open`].
    pub fn open<P: AsRef<Path>>(files: &[P], tags_column: &str, key_column: &str) -> Option<Self> {
        let tags = ParquetTags::open(files, tags_column)?;
        let keys = ParquetTags::of_shape(files, key_column, Shape::Text)?;
        let pairs = || tags.chunks.iter().zip(&keys.chunks);
        let fits = tags.chunks.len() == keys.chunks.len()
            && pairs().all(|((_, tags), (_, keys))| tags.num_rows == keys.num_rows)
            && pairs().all(|((_, tags), _)| tags.num_rows <= MAX_GROUP_ROWS);
        fits.then(|| Self { tags, keys, key_column: key_column.to_owned() })
    }
}

/// Scored pairs in Parquet files: columns of samples, classes and scores.
#[derive(Debug)]
pub struct ParquetPairs {
    files: Vec<PathBuf>,
    /// The chunks of the three columns in each row group, with its file.
    groups: Vec<(usize, [Chunk; 3])>,
}

/// The columns of scored pairs.
const PAIR_COLUMNS: [&str; 3] = ["sample", "class", "score"];

impl ParquetPairs {
    /// The pairs in these files; `None` as for [`ParquetTags::open`].
    pub fn open<P: AsRef<Path>>(files: &[P]) -> Option<Self> {
        let column = |name| ParquetTags::of_shape(files, name, Shape::Number);
        // The score first: predictions of other layouts have none, which their first file tells.
        let [samples, classes, scores] = PAIR_COLUMNS;
        let scores = column(scores)?;
        let (classes, samples) = (column(classes)?, column(samples)?);
        if classes.chunks.len() != samples.chunks.len()
            || scores.chunks.len() != samples.chunks.len()
        {
            return None;
        }
        let chunks = samples.chunks.iter().zip(&classes.chunks).zip(&scores.chunks);
        let groups = chunks.map(|((&(file, sample), &(_, class)), &(_, score))| {
            let is_integer = |chunk: Chunk| chunk.kind != Kind::F32;
            let fits = is_integer(sample)
                && is_integer(class)
                && score.kind == Kind::F32
                && [sample, class, score].iter().all(|chunk| {
                    chunk.num_rows == sample.num_rows && chunk.num_values == sample.num_rows
                });
            fits.then_some((file, [sample, class, score]))
        });
        let groups = groups.collect::<Option<Vec<_>>>()?;
        Some(Self { files: samples.files, groups })
    }

    /// Pairs of all files.
    pub(crate) fn num_pairs(&self) -> u64 {
        self.groups.iter().map(|(_, [samples, ..])| samples.num_rows).sum()
    }

    /// Row groups in all.
    pub(crate) fn num_groups(&self) -> usize {
        self.groups.len()
    }

    /// The file of a row group.
    pub(crate) fn path(&self, number: usize) -> &Path {
        &self.files[self.groups[number].0]
    }

    /// Reads the row group numbered `number`, in the memory of a reader that is done with another.
    pub(crate) fn read<'a>(
        &'a self,
        number: usize,
        done: Option<PairReader<'a>>,
    ) -> Result<PairReader<'a>> {
        let (file, chunks) = &self.groups[number];
        let path = &self.files[*file];
        let Some(mut reader) = done else { return PairReader::new(path, chunks) };
        reader.restart(path, chunks)?;
        Ok(reader)
    }
}

fn damaged(path: &Path, at: u64, what: &str) -> Error {
    Error::data(format!(
        "{}: the records cannot be read: the page at byte {at} is damaged: {what}; make or copy the \
         file again, or leave it out",
        path.display()
    ))
}
