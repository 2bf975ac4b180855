//! Lists of keys to take and to leave out.

use std::collections::BTreeMap;

use hashbrown::HashSet;

use crate::Result;
use crate::index::format::KeyScope;
use crate::index::format::join_key;
use crate::index::format::split_scoped;

/// Lists of keys to take and to leave out.
#[derive(Debug)]
pub(in crate::index) struct Lists {
    include: Option<HashSet<Vec<u8>>>,
    exclude: HashSet<Vec<u8>>,
}

impl Lists {
    pub(in crate::index) fn new(
        scope: KeyScope,
        include: Option<&[String]>,
        exclude: &[String],
    ) -> Result<Self> {
        let line = |line: &String| match scope {
            KeyScope::Global => Ok(line.clone().into_bytes()),
            KeyScope::Shard => {
                let (shard, key) = split_scoped(line)?;
                Ok(join_key(shard, key, &mut Vec::new()).to_vec())
            }
        };
        let set = |lines: &[String]| lines.iter().map(line).collect::<Result<HashSet<_>>>();
        Ok(Self { include: include.map(set).transpose()?, exclude: set(exclude)? })
    }

    /// Whether all keys are taken.
    pub(in crate::index) fn is_empty(&self) -> bool {
        self.include.is_none() && self.exclude.is_empty()
    }

    pub(in crate::index) fn cause(&self, key: &[u8]) -> Option<&'static str> {
        if self.exclude.contains(key) {
            return Some("excluded");
        }
        self.include.as_ref().filter(|include| !include.contains(key)).map(|_| "not_included")
    }

    /// Whether a sample is left out, which is counted.
    pub(in crate::index) fn leaves_out(
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
