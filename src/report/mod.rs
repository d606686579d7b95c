//! Results as text tables and JSON. Knows no terminal and prints nothing.

mod inspection;
mod number;
mod selection;
mod table;
mod verification;

pub use inspection::Inspection;
pub use number::{bytes, grouped, percent};
pub use selection::{Side, selection_json, selection_table};
pub use verification::{Manifest, Mismatch};
