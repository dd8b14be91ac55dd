//! Members of JSON values, read without a way to panic.

use serde_json::Value;

/// A member by its name.
pub trait Member {
    /// The member called `key`; null where there is none.
    fn at(&self, key: &str) -> &Value;
}

impl Member for Value {
    fn at(&self, key: &str) -> &Value {
        self.get(key).unwrap_or(&Value::Null)
    }
}
