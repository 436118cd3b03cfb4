//! IAM policies as the test server enforces them: the very files of contrib/iam. What this does not know, it refuses to read,
//! so that no condition passes unseen.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

/// The placeholders of the files.
pub const BUCKET: &str = "BUCKET";
pub const PREFIX: &str = "PREFIX";
pub const MAX_DAYS: &str = "MAXDAYS";
pub const LOCK_MODE: &str = "LOCKMODE";

#[derive(Clone, Debug)]
struct Statement {
    allow: bool,
    actions: Vec<String>,
    resources: Vec<String>,
    /// Operator, key, values.
    conditions: Vec<(String, String, Vec<String>)>,
}

#[derive(Clone, Debug)]
pub struct Policy {
    statements: Vec<Statement>,
}

/// What is known of a request: condition keys and their values.
pub type Context = BTreeMap<String, String>;

fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(list) => list.iter().map(|item| item.as_str().expect("a text").to_string()).collect(),
        other => panic!("neither a text nor a list: {other}"),
    }
}

/// IAM's `*` and `?`.
fn like(pattern: &str, text: &str) -> bool {
    match pattern.chars().next() {
        None => text.is_empty(),
        Some('*') => (0..=text.len()).any(|at| text.is_char_boundary(at) && like(&pattern[1..], &text[at..])),
        Some('?') => text.chars().next().is_some_and(|c| like(&pattern[1..], &text[c.len_utf8()..])),
        Some(p) => text.strip_prefix(p).is_some_and(|rest| like(&pattern[p.len_utf8()..], rest)),
    }
}

impl Policy {
    /// One of contrib/iam, for this bucket, prefix and cap; locks are to be of compliance mode.
    #[track_caller]
    pub fn load(name: &str, bucket: &str, prefix: &str, max_days: u32) -> Self {
        Self::load_with(name, bucket, prefix, max_days, "COMPLIANCE")
    }

    #[track_caller]
    pub fn load_with(name: &str, bucket: &str, prefix: &str, max_days: u32, lock_mode: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/iam").join(name);
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let max_days = max_days.to_string();
        let places = [(BUCKET, bucket), (PREFIX, prefix), (MAX_DAYS, &max_days), (LOCK_MODE, lock_mode)];
        Self::parse(&places.iter().fold(text, |text, (place, value)| text.replace(place, value)))
    }

    #[track_caller]
    pub fn parse(text: &str) -> Self {
        let whole: Value = serde_json::from_str(text).expect("JSON");
        assert_eq!(whole["Version"], "2012-10-17");
        let statements = whole["Statement"].as_array().expect("statements");
        let read = |statement: &Value| {
            let members = statement.as_object().expect("an object");
            for member in members.keys() {
                assert!(
                    ["Sid", "Effect", "Action", "Resource", "Condition"].contains(&member.as_str()),
                    "{member}"
                );
            }
            let mut conditions = Vec::new();
            for (operator, keys) in statement["Condition"].as_object().into_iter().flatten() {
                assert!(
                    [
                        "Null",
                        "NumericLessThanEquals",
                        "NumericGreaterThan",
                        "StringLike",
                        "StringEquals",
                        "StringNotEquals"
                    ]
                    .contains(&operator.as_str()),
                    "{operator}"
                );
                for (key, values) in keys.as_object().expect("keys") {
                    conditions.push((operator.clone(), key.clone(), strings(values)));
                }
            }
            Statement {
                allow: match statement["Effect"].as_str() {
                    Some("Allow") => true,
                    Some("Deny") => false,
                    other => panic!("{other:?}"),
                },
                actions: strings(&statement["Action"]),
                resources: strings(&statement["Resource"]),
                conditions,
            }
        };
        Self { statements: statements.iter().map(read).collect() }
    }

    /// All actions that some statement allows, as they are written.
    pub fn allowed_actions(&self) -> Vec<&str> {
        let allowing = self.statements.iter().filter(|statement| statement.allow);
        allowing.flat_map(|statement| statement.actions.iter().map(String::as_str)).collect()
    }

    pub fn denied_actions(&self) -> Vec<&str> {
        let denying = self.statements.iter().filter(|statement| !statement.allow);
        denying.flat_map(|statement| statement.actions.iter().map(String::as_str)).collect()
    }

    /// Whether an action on a resource (without `arn:aws:s3:::`) is allowed.
    pub fn allows(&self, action: &str, resource: &str, context: &Context) -> bool {
        let arn = format!("arn:aws:s3:::{resource}");
        let applies = |statement: &&Statement| {
            statement.actions.iter().any(|pattern| like(&pattern.to_lowercase(), &action.to_lowercase()))
                && statement.resources.iter().any(|pattern| like(pattern, &arn))
                && statement.conditions.iter().all(|condition| holds(condition, context))
        };
        let mut applying = self.statements.iter().filter(applies).peekable();
        applying.peek().is_some() && applying.all(|statement| statement.allow)
    }
}

fn holds((operator, key, values): &(String, String, Vec<String>), context: &Context) -> bool {
    let value = context.get(key);
    let number = |text: &String| text.parse::<f64>().expect("a number");
    match operator.as_str() {
        "Null" => values.iter().any(|want| (want == "true") == value.is_none()),
        // IAM: a key that is missing matches no operator but Null and those that begin with a negation.
        "StringNotEquals" => value.is_none_or(|v| !values.contains(v)),
        "NumericLessThanEquals" => value.is_some_and(|v| values.iter().any(|max| number(v) <= number(max))),
        "NumericGreaterThan" => value.is_some_and(|v| values.iter().any(|min| number(v) > number(min))),
        "StringLike" => value.is_some_and(|v| values.iter().any(|pattern| like(pattern, v))),
        "StringEquals" => value.is_some_and(|v| values.contains(v)),
        other => panic!("{other}"),
    }
}

#[test]
fn policies_are_evaluated_as_iam_does() {
    let policy = Policy::parse(
        r#"{"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Action": ["s3:Get*", "s3:PutObject"], "Resource": "arn:aws:s3:::b/x/*"},
            {"Effect": "Allow", "Action": "s3:PutObjectRetention", "Resource": "arn:aws:s3:::b/x/*",
             "Condition": {"NumericLessThanEquals": {"s3:days": "30"}}},
            {"Effect": "Deny", "Action": "s3:PutObject", "Resource": "*", "Condition": {"Null": {"s3:cond": "true"}}}]}"#,
    );
    let context = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect::<Context>()
    };
    let none = context(&[]);
    assert!(policy.allows("s3:GetObject", "b/x/y", &none) && !policy.allows("s3:GetObject", "b/y", &none));
    assert!(!policy.allows("s3:DeleteObject", "b/x/y", &none));
    assert!(!policy.allows("s3:PutObject", "b/x/y", &none), "denied wins");
    assert!(policy.allows("s3:PutObject", "b/x/y", &context(&[("s3:cond", "*")])));
    assert!(policy.allows("s3:PutObjectRetention", "b/x/y", &context(&[("s3:days", "30")])));
    assert!(!policy.allows("s3:PutObjectRetention", "b/x/y", &context(&[("s3:days", "31")])));
    assert!(!policy.allows("s3:PutObjectRetention", "b/x/y", &none));
    let policy = Policy::parse(
        r#"{"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Action": "s3:PutObject", "Resource": "*"},
            {"Effect": "Deny", "Action": "s3:PutObject", "Resource": "arn:aws:s3:::b/x/*",
             "Condition": {"StringNotEquals": {"s3:class": ["A", "B"]}}},
            {"Effect": "Deny", "Action": "s3:PutObject", "Resource": "arn:aws:s3:::b/y/*",
             "Condition": {"Null": {"s3:class": "false"}, "StringNotEquals": {"s3:class": "A"}}}]}"#,
    );
    let put = |name: &str, context: &Context| policy.allows("s3:PutObject", name, context);
    assert!(put("b/x/1", &context(&[("s3:class", "B")])) && !put("b/x/1", &context(&[("s3:class", "C")])));
    assert!(!put("b/x/1", &none), "a key that is missing is not equal to anything");
    assert!(put("b/y/1", &none) && put("b/y/1", &context(&[("s3:class", "A")])));
    assert!(!put("b/y/1", &context(&[("s3:class", "B")])));
}
