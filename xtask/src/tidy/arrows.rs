//! Which crate may depend on which.

use anyhow::{Context, Result};
use serde_json::Value;

use super::Finding;

/// Every crate of the workspace and all that its product code may depend on. `sexton` may use everything; an entry
/// more than here needs a written decision.
const ALLOWED: &[(&str, &[&str])] = &[
    ("sexton-plan", &["serde", "thiserror"]),
    ("sexton-sys", &[]),
    ("sexton-ledger", &["jiff", "rusqlite", "serde", "serde_json", "sexton-plan", "thiserror", "tracing", "ulid"]),
    ("sexton-core", &["sexton-plan", "sexton-sys", "thiserror", "tracing"]),
    ("sexton-keeper", &["sexton-sys"]),
    ("sexton-ffi", &["sexton-core", "sexton-plan", "tracing"]),
    ("sexton-testkit", &["anyhow", "serde_json", "sexton-sys"]),
    // `procfs` is what a look is measured against.
    (
        "xtask",
        &["anyhow", "procfs", "serde_json", "sexton-core", "sexton-plan", "sexton-sys", "sexton-testkit", "tokio"],
    ),
];

/// May depend on everything but test helpers.
const TOP: &str = "sexton";

/// Checks what `cargo metadata` tells of the workspace.
pub fn check(metadata: &Value) -> Result<Vec<Finding>> {
    let packages = metadata.get("packages").and_then(Value::as_array).context("cargo metadata lists no packages")?;
    Ok(packages.iter().flat_map(check_package).collect())
}

fn check_package(package: &Value) -> Vec<Finding> {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let name = text(package, "name");
    let finding = |says: String| Finding { path: text(package, "manifest_path"), line: 1, says };
    let dependencies = package.get("dependencies").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    // A dependency's kind is null where product code has it, else "dev" or "build".
    let product = dependencies.iter().filter(|dependency| dependency.get("kind").is_none_or(Value::is_null));
    let product = product.map(|dependency| text(dependency, "name"));
    let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| *known == name) else {
        if name != TOP {
            return vec![finding(format!("`{name}` is not in the table of crates"))];
        }
        let helpers = product.filter(|dependency| dependency == "sexton-testkit" || dependency == "xtask");
        return helpers.map(|helper| finding(format!("`{TOP}` may use `{helper}` in tests only"))).collect();
    };
    let extra = product.filter(|dependency| !allowed.contains(&dependency.as_str()));
    extra.map(|dependency| finding(format!("`{name}` may not depend on `{dependency}`"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn package(name: &str, dependency: &str, kind: Value) -> Value {
        let dependencies = json!([{ "name": dependency, "kind": kind }]);
        json!({ "packages": [{ "name": name, "manifest_path": "Cargo.toml", "dependencies": dependencies }] })
    }

    #[test]
    fn an_arrow_that_points_the_wrong_way_is_found() {
        let found = |name, dependency, kind| check(&package(name, dependency, kind)).unwrap().len();
        assert_eq!(found("sexton-plan", "sexton-core", Value::Null), 1);
        assert_eq!(found("sexton-plan", "serde", Value::Null), 0);
        assert_eq!(found("sexton-plan", "proptest", json!("dev")), 0);
        assert_eq!(found("sexton-other", "serde", Value::Null), 1);
        assert_eq!(found("sexton", "sexton-testkit", Value::Null), 1);
        assert_eq!(found("sexton", "sexton-testkit", json!("dev")), 0);
    }
}
