//! Everything that is wrong at once, in bounded memory.

use crate::{Error, Result};

/// The faults found in one go: the first thousand, and how many more there were.
#[derive(Debug, Default)]
pub struct Faults {
    first: Vec<Error>,
    more: usize,
}

impl Faults {
    const MOST: usize = 1000;

    /// Adds one.
    pub fn push(&mut self, fault: Error) {
        if self.first.len() < Self::MOST {
            self.first.push(fault);
        } else {
            self.more += 1;
        }
    }

    /// The first of them, in the order they were found.
    pub fn first(&self) -> &[Error] {
        &self.first
    }

    /// How many were counted only.
    pub fn more(&self) -> usize {
        self.more
    }

    /// Keeps the fault of a result that has one.
    pub fn keep<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|fault| self.push(fault)).ok()
    }

    /// `Ok` when there are none, the fault when there is one, [`Error::Many`] otherwise.
    ///
    /// # Errors
    /// The faults.
    pub fn into_result(self) -> Result<()> {
        if self.first.is_empty() { Ok(()) } else { Err(self.into_error()) }
    }

    /// The fault when there is one, [`Error::Many`] otherwise.
    pub fn into_error(mut self) -> Error {
        if self.first.len() == 1 { self.first.remove(0) } else { Error::Many(self) }
    }
}

impl Extend<Error> for Faults {
    fn extend<I: IntoIterator<Item = Error>>(&mut self, faults: I) {
        faults.into_iter().for_each(|fault| self.push(fault));
    }
}

impl FromIterator<Error> for Faults {
    fn from_iter<I: IntoIterator<Item = Error>>(faults: I) -> Self {
        let mut all = Self::default();
        all.extend(faults);
        all
    }
}

impl std::fmt::Display for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, fault) in self.first.iter().enumerate() {
            write!(f, "{}{fault}", if i > 0 { "\n" } else { "" })?;
        }
        if self.more > 0 {
            write!(f, "\nand {} more", self.more)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(n: usize) -> Faults {
        (0..n).map(|i| Error::usage(format!("fault {i}"), "")).collect()
    }

    #[test]
    fn one_fault_stays_itself_and_many_are_joined() {
        assert!(faults(0).into_result().is_ok());
        assert_eq!(faults(1).into_result().map_err(|e| e.to_string()), Err("fault 0".to_owned()));
        assert_eq!(faults(2).into_result().map_err(|e| e.to_string()), Err("fault 0\nfault 1".to_owned()));
    }

    #[test]
    fn a_flood_is_counted_and_not_held() {
        let flood = faults(5000);
        assert_eq!((flood.first().len(), flood.more()), (1000, 4000));
        assert!(flood.to_string().ends_with("fault 999\nand 4000 more"));
    }
}
