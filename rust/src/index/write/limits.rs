//! How much of the inputs may be wrong: counts whose share is above a limit refuse the build.

use std::collections::BTreeMap;

use super::Builder;
use crate::{Error, Result};

/// Shares above which a build is refused, by the name of the count, and of which count they are.
pub const LIMITS: [(&str, &str, f64); 5] = [
    ("keys_doubled", "samples", 0.0),
    ("samples_split", "samples", 0.0),
    ("samples_without_record", "samples", 0.99),
    ("records_without_sample", "records", 0.99),
    ("records_doubled", "records", 1.0),
];

/// Refuses limits that are none.
pub(super) fn check_limits(limits: &BTreeMap<String, f64>) -> Result<()> {
    for (name, share) in limits {
        if !LIMITS.iter().any(|limit| limit.0 == name) {
            let known: Vec<_> = LIMITS.iter().map(|limit| limit.0).collect();
            return Err(Error::usage(format!(
                "there is no limit {name:?}; those there are: {}",
                known.join(", ")
            )));
        }
        if !(0.0..=1.0).contains(share) {
            return Err(Error::usage(format!(
                "the limit {name}={share}: expected a share from 0 to 1"
            )));
        }
    }
    Ok(())
}

impl Builder {
    /// An error where one of the counts is above its limit.
    pub(super) fn refuse_shares(&self, unused_key: Option<&str>) -> Result<()> {
        for (name, _, _) in LIMITS {
            let key = if name == "records_without_sample" { unused_key } else { None };
            self.check_share(name, key)?;
        }
        Ok(())
    }

    /// An error where the share of what `name` counts is above its limit.
    pub(super) fn check_share(&self, name: &str, example: Option<&str>) -> Result<()> {
        let Some(&(_, of, default)) = LIMITS.iter().find(|limit| limit.0 == name) else {
            return Ok(());
        };
        let number = self.counts.get(name).copied().unwrap_or(0);
        let total = match of {
            "samples" => self.num_samples,
            other => self.counts.get(other).copied().unwrap_or(0),
        };
        let limit = self.options.limits.get(name).copied().unwrap_or(default);
        if number as f64 <= limit * total as f64 {
            return Ok(());
        }
        let what = match name {
            "keys_doubled" => {
                "samples have a key that another sample has; keys must be distinct, so \
                               rename the members, index the shards apart, or say --key-scope shard"
            }
            "samples_split" => {
                "samples have members that do not stand together; readers of shards would \
                                take them for two, so pack the shards again"
            }
            "samples_without_record" => {
                "samples have no record of their key; are keys written the same \
                                         way in the records and in the shards?"
            }
            "records_without_sample" => {
                "records have a key that no sample has; are keys written the same \
                                         way in the records and in the shards?"
            }
            _ => "records have a key that an earlier record has",
        };
        let example = example.map_or(String::new(), |key| format!(" (such as {key:?})"));
        Err(Error::data(format!(
            "{}: {number} of {total} {what}{example} A share up to {limit} is allowed; raise it with \
             --limit {name}=SHARE",
            self.folder.display()
        )))
    }
}
