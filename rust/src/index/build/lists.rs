//! Lists of keys to take and to leave out.

use std::collections::BTreeMap;

use hashbrown::HashSet;

use super::BuildOptions;
use crate::Result;
use crate::index::format::KeyScope;
use crate::index::records::join_key;
use crate::index::takedown::split_scoped;

/// Lists of keys to take and to leave out.
#[derive(Debug)]
pub(super) struct Lists {
    include: Option<HashSet<Vec<u8>>>,
    exclude: HashSet<Vec<u8>>,
}

impl Lists {
    pub(super) fn new(options: &BuildOptions) -> Result<Self> {
        let line = |line: &String| match options.key_scope {
            KeyScope::Global => Ok(line.clone().into_bytes()),
            KeyScope::Shard => {
                let (shard, key) = split_scoped(line)?;
                Ok(join_key(shard, key, &mut Vec::new()).to_vec())
            }
        };
        let set = |lines: &Vec<String>| lines.iter().map(line).collect::<Result<HashSet<_>>>();
        let include = options.include.as_ref().map(set).transpose()?;
        Ok(Self { include, exclude: set(&options.exclude)? })
    }

    /// Whether all keys are taken.
    pub(super) fn is_empty(&self) -> bool {
        self.include.is_none() && self.exclude.is_empty()
    }

    pub(super) fn cause(&self, key: &[u8]) -> Option<&'static str> {
        if self.exclude.contains(key) {
            return Some("excluded");
        }
        self.include.as_ref().filter(|include| !include.contains(key)).map(|_| "not_included")
    }

    /// Whether a sample is left out, which is counted.
    pub(super) fn leaves_out(
        &self,
        key: impl AsRef<[u8]>,
        counts: &mut BTreeMap<String, u64>,
    ) -> bool {
        let cause = self.cause(key.as_ref());
        if let Some(cause) = cause {
            *counts.entry(format!("samples_{cause}")).or_insert(0) += 1;
        }
        cause.is_some()
    }
}
