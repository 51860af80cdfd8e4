//! Something that is not well, for as long as it lasts.
//!
//! Knows nothing of what causes it or of how it is shown.

use serde::Serialize;

/// One condition that a person can mend, in one sentence. Shown by `status` from onset to recovery; the log names both edges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// Which condition, for programs: `[a-z_]+`, one at a time of each.
    pub code: &'static str,
    /// What is wrong, where, and what to do about it.
    pub text: String,
}
