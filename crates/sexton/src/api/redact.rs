//! What of an environment is shown: names always, values that look like secrets never.

/// What stands for a secret.
pub const HIDDEN: &str = "***";

/// Parts of a variable's name that make its value a secret. Too many hidden harms less than one shown.
const NAMES: &[&str] = &[
    "SECRET",
    "TOKEN",
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "PASS",
    "PWD",
    "KEY",
    "CREDENTIAL",
    "CREDS",
    "AUTH",
    "PRIVATE",
    "COOKIE",
    "SESSION",
    "SIGNATURE",
    "JWT",
    "BEARER",
    "SALT",
    "DSN",
];

/// Variables that hold such a part and are no secrets.
const PLAIN: &[&str] = &["PWD", "OLDPWD", "SSH_AUTH_SOCK", "XAUTHORITY", "XDG_SESSION_ID", "XDG_SESSION_TYPE"];

/// Beginnings of well-known credentials.
const PREFIXES: &[&str] = &[
    "-----BEGIN",
    "AKIA",
    "ASIA",
    "AIza",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "sk-",
    "sk_live_",
    "rk_live_",
    "xoxb-",
    "xoxp-",
    "xoxa-",
    "npm_",
    "pypi-",
    "hf_",
    "eyJ",
    "Bearer ",
    "Basic ",
];

/// The value of variable `key` as it may be shown.
pub fn value(key: &str, value: &str) -> String {
    let name = key.to_ascii_uppercase();
    let is_secret = !PLAIN.contains(&name.as_str()) && NAMES.iter().any(|part| name.contains(part));
    if value.is_empty() {
        return String::new();
    }
    if is_secret || PREFIXES.iter().any(|prefix| value.starts_with(prefix)) {
        return HIDDEN.to_owned();
    }
    without_userinfo(value)
}

/// `value` with the password of every URL in it hidden.
fn without_userinfo(value: &str) -> String {
    let mut shown = String::with_capacity(value.len());
    let mut rest = value;
    while let Some((before, after)) = rest.split_once("://") {
        shown.push_str(before);
        shown.push_str("://");
        let end = after.find(|c: char| "/?# \t\n\"'".contains(c)).unwrap_or(after.len());
        let (authority, tail) = after.split_at(end);
        match authority.rsplit_once('@') {
            Some((userinfo, host)) => {
                let user = userinfo.split_once(':').map(|(user, _)| format!("{user}:{HIDDEN}"));
                // A lone name before the host is often a token.
                shown.push_str(&user.unwrap_or_else(|| HIDDEN.to_owned()));
                shown.push('@');
                shown.push_str(host);
            }
            None => shown.push_str(authority),
        }
        rest = tail;
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_and_the_rest_is_not() {
        for (key, secret) in [
            ("API_KEY", "x"),
            ("aws_secret_access_key", "x"),
            ("DB_PASSWORD", "x"),
            ("GITHUB_TOKEN", "x"),
            ("MYSQL_PWD", "x"),
            ("X", "ghp_0123"),
            ("CERT", "-----BEGIN PRIVATE KEY-----\n"),
            ("HEADER", "Bearer x"),
        ] {
            assert_eq!(value(key, secret), HIDDEN, "{key}");
        }
        for (key, plain) in
            [("PATH", "/bin"), ("HOME", "/root"), ("PWD", "/tmp"), ("PORT", "80"), ("URL", "http://h:80/x@y")]
        {
            assert_eq!(value(key, plain), plain, "{key}");
        }
    }

    #[test]
    fn passwords_in_urls_are_hidden() {
        assert_eq!(value("DATABASE_URL", "postgres://u:p@ss@db:5432/x?y=1"), "postgres://u:***@db:5432/x?y=1");
        assert_eq!(value("A", "redis://:p@r/0,http://tok@g/x"), "redis://:***@r/0,http://***@g/x");
    }
}
