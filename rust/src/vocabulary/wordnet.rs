//! Which synset a hashtag means, by the noun files of WordNet (Mahajan et al. 2018, section 2).
//!
//! A tag matches a noun when both agree after spaces, `_`, `-`, `'` and `.` are taken out: `brownbear`,
//! `brown_bear` and `#BrownBear` all match `brown bear`. The tags that match nouns of one synset mean
//! that synset, so `ursusarctos` joins them. Where a tag has several senses, one is chosen: synsets
//! that the caller lists come first, then the lowest sense number of the noun, then the largest count
//! of that sense in WordNet's tagged texts, then the smallest offset.
//!
//! Three files of a `dict` folder are read, in the format of WordNet 3.0 (`wndb(5WN)`,
//! `cntlist(5WN)`): `index.noun` (nouns and the offsets of their synsets, by sense number), `data.noun`
//! (for the first word of each synset, after which it is called) and, where it is there,
//! `cntlist.rev` (counts of senses). A synset's WNID is `n` and its offset in eight digits.

use std::fs;
use std::path::{Path, PathBuf};

use hashbrown::{HashMap, HashSet};

use crate::hashtag::{Scratch, normalize};
use crate::{Error, Result};

/// The largest file that is read; WordNet's own have 16 MB at most.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// The nouns of WordNet, each with the synset that its tag means.
#[derive(Debug, Clone)]
pub struct WordNet {
    /// By the noun without what [`compact`] takes out.
    meanings: HashMap<String, Meaning>,
    /// The first word of each synset.
    names: HashMap<u32, String>,
}

/// The synset that a tag means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meaning {
    /// Offset of the synset in `data.noun`.
    pub synset: u32,
    /// Whether the tag could have meant another synset too.
    pub ambiguous: bool,
}

/// One sense of a noun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Sense {
    /// Sorts before all others where the caller lists the synset.
    unlisted: bool,
    number: u32,
    /// Largest count first.
    rarity: std::cmp::Reverse<u64>,
    synset: u32,
}

impl WordNet {
    /// Reads the `dict` folder at `folder`; the synsets of `listed` (WNIDs such as `n02131653`) are
    /// chosen before others.
    pub fn read(folder: impl AsRef<Path>, listed: &[String]) -> Result<Self> {
        let folder = folder.as_ref();
        let names = read_names(&File::read(folder, "data.noun")?)?;
        let listed = listed.iter().map(|wnid| offset_of(wnid, &names)).collect::<Result<_>>()?;
        let counts = match folder.join("cntlist.rev").exists() {
            true => read_counts(&File::read(folder, "cntlist.rev")?)?,
            false => HashMap::new(),
        };
        let index = File::read(folder, "index.noun")?;
        let meanings = read_meanings(&index, &names, &counts, &listed)?;
        Ok(Self { meanings, names })
    }

    /// Number of different nouns, once compacted.
    pub fn num_nouns(&self) -> usize {
        self.meanings.len()
    }

    /// Number of synsets.
    pub fn num_synsets(&self) -> usize {
        self.names.len()
    }

    /// What a normalized tag means, where it matches a noun.
    pub fn meaning(&self, tag: &str) -> Option<Meaning> {
        self.meanings.get(compact(tag).as_str()).copied()
    }

    /// What a synset is called: its first word in normal form, where that word means this synset, and
    /// the word and the WNID, `crane.n03126707`, where it means another.
    pub fn name(&self, synset: u32) -> String {
        let word = self.names.get(&synset).map_or("", String::as_str);
        let means_it = self.meaning(word).is_some_and(|meaning| meaning.synset == synset);
        if means_it { word.to_owned() } else { format!("{word}.{}", wnid(synset)) }
    }
}

/// The WNID of a synset of nouns.
pub fn wnid(synset: u32) -> String {
    format!("n{synset:08}")
}

/// A noun or tag without spaces, `_`, `-`, `'` and `.`.
fn compact(text: &str) -> String {
    text.chars().filter(|character| !matches!(character, ' ' | '_' | '-' | '\'' | '.')).collect()
}

fn offset_of(wnid: &str, names: &HashMap<u32, String>) -> Result<u32> {
    let digits = wnid.strip_prefix('n').filter(|digits| digits.len() == 8);
    let offset = digits.and_then(|digits| digits.parse().ok());
    offset.filter(|offset| names.contains_key(offset)).ok_or_else(|| {
        Error::usage(format!(
            "synset {wnid:?}: expected the WNID of a noun synset of this WordNet, such as n02131653"
        ))
    })
}

/// A text file of WordNet, with its lines.
struct File {
    path: PathBuf,
    text: String,
}

/// A line with its number from 1 and its place in the file.
struct Line<'a> {
    number: usize,
    place: usize,
    text: &'a str,
}

impl File {
    fn read(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(name);
        let size = match fs::metadata(&path) {
            Ok(found) if found.is_file() => found.len(),
            _ => {
                return Err(Error::usage(format!(
                    "{}: there is no such file; expected the dict folder of WordNet 3.0 (Debian's \
                     package wordnet-base has it at /usr/share/wordnet)",
                    path.display()
                )));
            }
        };
        if size > MAX_FILE_BYTES {
            return Err(Error::data(format!(
                "{}: expected a file of WordNet, of {MAX_FILE_BYTES} bytes at most, found {size}",
                path.display()
            )));
        }
        let bytes = fs::read(&path).map_err(|error| Error::io(&path, error))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let place = error.utf8_error().valid_up_to();
            Error::data(format!(
                "{}: expected text, found no UTF-8 at byte {place}",
                path.display()
            ))
        })?;
        Ok(Self { path, text })
    }

    /// The lines after the licence, which is indented.
    fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        let mut place = 0;
        let lines = self.text.split_inclusive('\n').enumerate().map(move |(number, text)| {
            let line = Line { number: number + 1, place, text: text.trim_end() };
            place += text.len();
            line
        });
        lines.filter(|line| !line.text.starts_with("  ") && !line.text.is_empty())
    }

    fn fault(&self, line: &Line<'_>, expected: &str) -> Error {
        let found: String = line.text.chars().take(60).collect();
        Error::data(format!(
            "{}: line {}: expected {expected}, found {found:?}; install WordNet again",
            self.path.display(),
            line.number
        ))
    }
}

/// The first word of each synset, in normal form.
fn read_names(file: &File) -> Result<HashMap<u32, String>> {
    let mut names = HashMap::new();
    let mut scratch = Scratch::default();
    for line in file.lines() {
        let mut fields = line.text.split(' ');
        let offset = fields.next().filter(|field| field.len() == 8);
        let offset: Option<u32> = offset.and_then(|field| field.parse().ok());
        let word = fields.nth(3).and_then(|word| normalize(word.as_bytes(), &mut scratch).ok());
        match (offset, word) {
            (Some(offset), Some(word)) if offset as usize == line.place => {
                names.insert(offset, word.to_owned());
            }
            _ => {
                let expected = format!("a synset that says it lies at byte {:08}", line.place);
                return Err(file.fault(&line, &expected));
            }
        }
    }
    if names.is_empty() {
        return Err(Error::data(format!("{}: there is no synset in it", file.path.display())));
    }
    Ok(names)
}

/// How often each sense of each noun was tagged: by lemma and sense number.
fn read_counts(file: &File) -> Result<HashMap<(String, u32), u64>> {
    let mut counts = HashMap::new();
    for line in file.lines() {
        let fields: Vec<&str> = line.text.split_whitespace().collect();
        let [key, number, count] = fields[..] else {
            return Err(file.fault(&line, "a sense key, a sense number and a count"));
        };
        let (lemma, rest) = key.split_once('%').unwrap_or_default();
        let (Ok(number), Ok(count)) = (number.parse(), count.parse()) else {
            return Err(file.fault(&line, "a sense number and a count"));
        };
        if rest.starts_with("1:") {
            counts.insert((lemma.to_owned(), number), count);
        }
    }
    Ok(counts)
}

fn read_meanings(
    file: &File,
    names: &HashMap<u32, String>,
    counts: &HashMap<(String, u32), u64>,
    listed: &HashSet<u32>,
) -> Result<HashMap<String, Meaning>> {
    let mut best: HashMap<String, (Sense, bool)> = HashMap::new();
    let mut scratch = Scratch::default();
    for line in file.lines() {
        let (lemma, offsets) = index_entry(&line)
            .ok_or_else(|| file.fault(&line, "a noun and the offsets of its synsets"))?;

        // Tags are looked up in this form, so lemmas need to have it too.
        let Ok(normal) = normalize(lemma.as_bytes(), &mut scratch) else { continue };
        let form = compact(normal);
        if form.is_empty() {
            continue;
        }
        for (place, offset) in offsets.into_iter().enumerate() {
            let synset = offset.parse().ok().filter(|offset| names.contains_key(offset));
            let synset = synset
                .ok_or_else(|| file.fault(&line, &format!("a synset at {offset} of data.noun")))?;
            let number = place as u32 + 1;
            let count = counts.get(&(lemma.to_owned(), number)).copied().unwrap_or(0);
            let unlisted = !listed.contains(&synset);
            let sense = Sense { unlisted, number, rarity: std::cmp::Reverse(count), synset };

            // Several lemmas may have one form; its meaning is the first of all their senses in the
            // order of `Sense`.
            match best.get_mut(&form) {
                None => {
                    best.insert(form.clone(), (sense, false));
                }
                Some((chosen, ambiguous)) => {
                    *ambiguous |= chosen.synset != synset;
                    *chosen = sense.min(*chosen);
                }
            }
        }
    }
    let meaning = |(sense, ambiguous): (Sense, bool)| Meaning { synset: sense.synset, ambiguous };
    Ok(best.into_iter().map(|(form, entry)| (form, meaning(entry))).collect())
}

/// `lemma pos synset_cnt p_cnt [symbol...] sense_cnt tagsense_cnt offset [offset...]`
fn index_entry<'a>(line: &Line<'a>) -> Option<(&'a str, Vec<&'a str>)> {
    let mut fields = line.text.split_whitespace();
    let (lemma, kind) = (fields.next()?, fields.next()?);
    let num_synsets: usize = fields.next()?.parse().ok()?;
    let num_symbols: usize = fields.next()?.parse().ok()?;
    let rest: Vec<&str> = fields.collect();
    let offsets = rest.get(num_symbols.checked_add(2)?..)?;
    (kind == "n" && !offsets.is_empty() && offsets.len() == num_synsets)
        .then(|| (lemma, offsets.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A dict folder of these synsets (words) and nouns (lemma, places of its synsets).
    fn dict(synsets: &[&str], nouns: &[(&str, &[usize])], counts: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let mut data = String::from("  1 licence\n");
        let mut offsets = Vec::new();
        for words in synsets {
            let offset = data.len();
            offsets.push(offset);
            let list: String = words.split(' ').map(|word| format!(" {word} 0")).collect();
            data += &format!("{offset:08} 05 n {:02x}{list} 000 | x  \n", words.split(' ').count());
        }
        let line = |(lemma, places): &(&str, &[usize])| {
            let list: String =
                places.iter().map(|&place| format!(" {:08}", offsets[place])).collect();
            format!("{lemma} n {} 1 @ {} 0{list}  \n", places.len(), places.len())
        };
        fs::write(folder.path().join("data.noun"), data).unwrap();
        let index: String = nouns.iter().map(line).collect();
        fs::write(folder.path().join("index.noun"), format!("  1 licence\n{index}")).unwrap();
        fs::write(folder.path().join("cntlist.rev"), counts).unwrap();
        folder
    }

    fn bears() -> tempfile::TempDir {
        dict(
            &["brown_bear bruin Ursus_arctos", "crane", "crane", "Crane"],
            &[
                ("brown_bear", &[0]),
                ("bruin", &[0]),
                ("crane", &[1, 2]),
                ("cr-ane", &[3]),
                ("ursus_arctos", &[0]),
            ],
            "crane%1:06:00:: 1 2\ncr-ane%1:06:00:: 1 7\ncrane%2:30:00:: 1 99\n",
        )
    }

    #[test]
    fn forms_of_a_noun_and_its_synonyms_mean_one_synset() {
        let wordnet = WordNet::read(bears().path(), &[]).unwrap();
        let bear = wordnet.meaning("brownbear").unwrap();
        assert_eq!(wordnet.name(bear.synset), "brown_bear");
        assert!(!bear.ambiguous);
        for tag in ["brown_bear", "brown-bear", "brown bear", "ursusarctos", "bruin"] {
            assert_eq!(wordnet.meaning(tag), Some(bear), "{tag}");
        }
        assert_eq!(wordnet.meaning("brownbears"), None);
        assert_eq!((wordnet.num_nouns(), wordnet.num_synsets()), (4, 4));
    }

    #[test]
    fn a_sense_is_chosen_by_list_then_number_then_count() {
        let folder = bears();
        let plain = WordNet::read(folder.path(), &[]).unwrap();
        let chosen = plain.meaning("crane").unwrap();
        assert!(chosen.ambiguous);
        // Sense 1 of "cr-ane" was tagged 7 times, sense 1 of "crane" 2 times.
        assert_eq!(plain.name(chosen.synset), "crane");
        let mut others: Vec<u32> = plain.names.keys().copied().collect();
        others.sort_unstable();
        assert_eq!(chosen.synset, others[3]);
        assert_eq!(plain.name(others[1]), format!("crane.{}", wnid(others[1])));
        let listed = WordNet::read(folder.path(), &[wnid(others[2])]).unwrap();
        assert_eq!(listed.meaning("crane").unwrap().synset, others[2]);
    }

    #[test]
    fn wrong_files_are_refused_by_line() {
        let error = |name: &str, content: &[u8]| {
            let folder = bears();
            fs::write(folder.path().join(name), content).unwrap();
            WordNet::read(folder.path(), &[]).unwrap_err().to_string()
        };
        assert!(error("data.noun", b"00000007 05 n 01 a 0 000 | x\n").contains("line 1"));
        assert!(error("data.noun", b"\xff").contains("UTF-8"));
        assert!(error("data.noun", b"").contains("no synset"));
        assert!(error("index.noun", b"bear n 1 1 @ 1 0 00000001\n").contains("line 1"));
        assert!(error("index.noun", b"bear n 99999999999999999999 1\n").contains("offsets"));
        assert!(error("index.noun", b"bear n 1 18446744073709551615 @\n").contains("offsets"));
        assert!(error("cntlist.rev", b"crane%1:06:00:: 1\n").contains("count"));
        let folder = bears();
        assert!(
            WordNet::read(folder.path(), &["n1".into()]).unwrap_err().to_string().contains("WNID")
        );
        fs::remove_file(folder.path().join("index.noun")).unwrap();
        let message = WordNet::read(folder.path(), &[]).unwrap_err().to_string();
        assert!(message.contains("wordnet-base"), "{message}");
    }
}
