//! What kubectl calls JSONPath: text with paths in braces, which are JSONPath (RFC 9535) but for their beginning.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use jsonpath_rust::{
    parser::{model::JpQuery, parse_json_path},
    query::js_path_process,
};
use serde_json::Value;

use super::text::clean;

/// A template.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Values(Path),
    /// `{range PATH}` up to its `{end}`.
    Each(Path, Vec<Part>),
}

#[derive(Clone, Debug, PartialEq)]
struct Path {
    query: JpQuery,
    /// Of the whole object, also where a range is gone through.
    of_root: bool,
    /// The names that it begins with.
    names: Vec<String>,
}

impl Template {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut rest = text;
        let parts = parts(&mut rest, 0)?;
        let template = Self(parts);
        if template.paths().is_empty() {
            return Err(
                "it names no field; put a path in braces, as in `{.process.comm}{\"\\n\"}`"
                    .to_owned(),
            );
        }
        Ok(template)
    }

    /// The names with which each path of the whole object begins.
    pub(super) fn paths(&self) -> Vec<&[String]> {
        fn collect<'a>(parts: &'a [Part], in_range: bool, paths: &mut Vec<&'a [String]>) {
            for part in parts {
                let path = match part {
                    Part::Text(_) => continue,
                    Part::Values(path) => path,
                    Part::Each(path, body) => {
                        collect(body, true, paths);
                        path
                    }
                };
                // What elements have depends on what they are.
                let names: &[String] = if in_range && !path.of_root {
                    &[]
                } else {
                    &path.names
                };
                paths.push(names);
            }
        }
        let mut paths = Vec::new();
        collect(&self.0, false, &mut paths);
        paths
    }

    /// Prints what it says of an object. On a terminal, values cannot take it over.
    pub(super) fn print(
        &self,
        object: &Value,
        terminal: bool,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let page = Page {
            root: object,
            terminal,
        };
        page.parts(&self.0, object, out)
    }
}

/// What is printed of.
struct Page<'a> {
    root: &'a Value,
    terminal: bool,
}

impl Page<'_> {
    fn parts(&self, parts: &[Part], current: &Value, out: &mut dyn Write) -> io::Result<()> {
        for part in parts {
            match part {
                Part::Text(text) => out.write_all(text.as_bytes())?,
                Part::Values(path) => {
                    for (number, value) in self.find(path, current).into_iter().enumerate() {
                        let gap = if number == 0 { "" } else { " " };
                        write!(out, "{gap}{}", self.shown(value))?;
                    }
                }
                Part::Each(path, body) => {
                    for value in self.find(path, current) {
                        self.parts(body, value, out)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// What is not there is nothing.
    fn find<'v>(&'v self, path: &Path, current: &'v Value) -> Vec<&'v Value> {
        let value = if path.of_root { self.root } else { current };
        let found = js_path_process(&path.query, value).unwrap_or_default();
        found.into_iter().map(|found| found.val()).collect()
    }

    fn shown<'v>(&self, value: &'v Value) -> Cow<'v, str> {
        let text = match value {
            Value::String(text) => Cow::Borrowed(text.as_str()),
            other => Cow::Owned(other.to_string()),
        };
        if self.terminal {
            return Cow::Owned(clean(&text).into_owned());
        }
        text
    }
}

/// Reads parts up to the end, or within a range up to its `{end}`.
fn parts(rest: &mut &str, depth: usize) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    loop {
        let Some(open) = rest.find('{') else {
            if !rest.is_empty() {
                parts.push(Part::Text((*rest).to_owned()));
                *rest = "";
            }
            return match depth {
                0 => Ok(parts),
                _ => Err("a `{range …}` has no `{end}`".to_owned()),
            };
        };
        if open > 0 {
            parts.push(Part::Text(rest[..open].to_owned()));
        }
        let block = block(&rest[open + 1..])?;
        *rest = &rest[open + block.len() + 2..];
        match block.trim() {
            "" => return Err("`{}` is empty; `{@}` is the whole object".to_owned()),
            "end" if depth > 0 => return Ok(parts),
            "end" => return Err("`{end}` ends nothing: no `{range …}` is before it".to_owned()),
            block if block.starts_with(['"', '\'']) => parts.push(Part::Text(literal(block)?)),
            block => match block.strip_prefix("range ") {
                Some(over) => {
                    let over = path(over.trim())?;
                    parts.push(Part::Each(over, self::parts(rest, depth + 1)?));
                }
                None => parts.push(Part::Values(path(block)?)),
            },
        }
    }
}

/// What is in braces, of which the first is open already.
fn block(text: &str) -> Result<&str, String> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (_, '\\') => escaped = true,
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '}') => return Ok(&text[..at]),
            (None, _) => {}
        }
    }
    Err(format!("`{{{text}` has no closing brace"))
}

/// `"\n"` as the text that it is.
fn literal(quoted: &str) -> Result<String, String> {
    let wrong = || format!("`{quoted}` is not a text in quotation marks, as in `\"\\n\"`");
    let mut chars = quoted.chars();
    let quote = chars.next().ok_or_else(wrong)?;
    let mut text = String::new();
    loop {
        match chars.next().ok_or_else(wrong)? {
            '\\' => text.push(match chars.next().ok_or_else(wrong)? {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                '0' => '\0',
                other @ ('\\' | '"' | '\'') => other,
                other => {
                    return Err(format!(
                        "`\\{other}` in `{quoted}` means nothing; write \\\\ for a backslash"
                    ));
                }
            }),
            c if c == quote => break,
            c => text.push(c),
        }
    }
    // One text is all that belongs into its braces.
    chars.next().map_or(Ok(text), |_| Err(wrong()))
}

/// `.a.b`, `$.a` for one of the whole object, or `@.a` for one of an element.
fn path(text: &str) -> Result<Path, String> {
    let (of_root, steps) = match text.split_at_checked(1) {
        Some(("$", steps)) => (true, steps),
        Some(("@", steps)) => (false, steps),
        Some(("." | "[", _)) => (false, text),
        _ => {
            return Err(format!(
                "`{text}` is not a path; it begins with a dot, as in `{{.process.comm}}`"
            ));
        }
    };
    let (query, names) = standard(steps);
    let query = parse_json_path(&query).map_err(|_| {
        format!("`{text}` is not a path that is understood; write it as in `.exec.args[0]`, `.exec.args[*]` or `..comm`")
    })?;
    Ok(Path {
        query,
        of_root,
        names,
    })
}

/// The path as RFC 9535 has it, in which names of any letters are quoted; and the names that it begins with.
fn standard(steps: &str) -> (String, Vec<String>) {
    let mut query = "$".to_owned();
    let mut names = Vec::new();
    let mut plain = true;
    let mut rest = if steps == "." { "" } else { steps };
    while !rest.is_empty() {
        if rest.starts_with('[') {
            plain = false;
            let brackets = bracket(rest);
            query.push_str(&rest[..brackets]);
            rest = &rest[brackets..];
            continue;
        }
        let dots = rest.len() - rest.trim_start_matches('.').len();
        if dots == 0 {
            // No step: the parser will not have it.
            query.push_str(rest);
            break;
        }
        let (name, after) = name(&rest[dots..]);
        if dots > 1 {
            query.push_str(&rest[..dots]);
        }
        match name.as_str() {
            "" if after.is_empty() => query.push('.'),
            "" => {}
            "*" => query.push_str("[*]"),
            name => query.push_str(&format!("[{}]", Value::from(name))),
        }
        plain &= dots == 1 && name != "*" && !name.is_empty();
        if plain {
            names.push(name);
        }
        rest = after;
    }
    (query, names)
}

/// How long what is in brackets is; all of it if they do not close, which the parser will not have.
fn bracket(text: &str) -> usize {
    let mut depth = 0;
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 1 => return at + 1,
            (None, ']') => depth -= 1,
            (None, _) => {}
        }
    }
    text.len()
}

/// A name up to the next step, of which `\.` is part; and what is behind it.
fn name(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '.' | '[' => return (name, &text[at..]),
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            c => name.push(c),
        }
    }
    (name, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event() -> Value {
        json!({
            "cgroupId": "4026",
            "workload": { "pod": "web-0", "labels": { "app.kubernetes.io/name": "web", "a-b": "c" } },
            "process": { "pid": 7, "comm": "l\u{1b}s" },
            "exec": { "filename": "/bin/ls", "args": ["ls", "-l", "/tmp"], "argsTruncated": true },
            "ways": [{ "name": "tp_btf", "ok": false }, { "name": "kprobe", "ok": true }],
        })
    }

    fn printed(template: &str, terminal: bool) -> String {
        let template =
            Template::parse(template).unwrap_or_else(|error| panic!("{template}: {error}"));
        let mut out = Vec::new();
        template
            .print(&event(), terminal, &mut out)
            .expect("a Vec takes all");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn what_kubectl_understands_is_understood() {
        let table = [
            (r#"{.exec.filename}{"\n"}"#, "/bin/ls\n"),
            ("pod {.workload.pod}, {.process.pid}!", "pod web-0, 7!"),
            (
                "{$.exec.filename}{'\\t'}{ .exec.argsTruncated }",
                "/bin/ls\ttrue",
            ),
            (
                "{.exec.args[0]} {.exec.args[-1]} {.exec.args[0:2]}",
                "ls /tmp ls -l",
            ),
            ("{.exec.args[*]}", "ls -l /tmp"),
            ("{.exec.args}", r#"["ls","-l","/tmp"]"#),
            ("{.process['pid']}", "7"),
            ("{..name}", "tp_btf kprobe"),
            ("{.ways[*].name}", "tp_btf kprobe"),
            ("{.workload.labels.*}", "c web"),
            (r"{.workload.labels.app\.kubernetes\.io/name}", "web"),
            ("{.workload.labels.a-b}", "c"),
            ("{.ways[?(@.ok==true)].name}", "kprobe"),
            (r#"{.ways[?(@.name=="tp_btf")].ok}"#, "false"),
            (r#"{range .exec.args[*]}{@}{"\n"}{end}."#, "ls\n-l\n/tmp\n."),
            (
                "{range .ways[*]}{$.process.pid}:{.name} {end}",
                "7:tp_btf 7:kprobe ",
            ),
            ("{.nothing.here}<{.exec.args[9]}>", "<>"),
            (r#"{"}"}{.process.pid}"#, "}7"),
        ];
        for (template, expected) in table {
            assert_eq!(printed(template, false), expected, "{template}");
        }
        assert_eq!(printed("{@}", false), event().to_string());
    }

    #[test]
    fn values_cannot_take_over_the_terminal() {
        assert_eq!(printed("{.process.comm}", true), "l\\u{1b}s");
        assert_eq!(printed("{.process.comm}", false), "l\u{1b}s");
    }

    #[test]
    fn what_is_wrong_is_refused_with_what_is_right() {
        let table = [
            ("", "it names no field; put a path in braces"),
            (".process.comm", "it names no field; put a path in braces"),
            ("{", "`{` has no closing brace"),
            ("{.process.comm", "`{.process.comm` has no closing brace"),
            ("{}", "`{}` is empty"),
            ("{process}", "`process` is not a path; it begins with a dot"),
            (
                "{.exec.args[}",
                "`.exec.args[` is not a path that is understood",
            ),
            ("{.exec...x}", "is not a path that is understood"),
            ("{.exec.}", "is not a path that is understood"),
            ("{.a[?(@.x]}", "is not a path that is understood"),
            ("{range .exec.args[*]}{@}", "a `{range …}` has no `{end}`"),
            ("{.exec}{end}", "`{end}` ends nothing"),
            (r#"{"\n}"#, "has no closing brace"),
            (r#"{"\q"}{.exec}"#, r"`\q` in"),
            (r#"{"a" .exec}"#, "is not a text in quotation marks"),
        ];
        for (template, expected) in table {
            let error = Template::parse(template).expect_err(template);
            assert!(error.contains(expected), "{template}: {error}");
        }
    }

    #[test]
    fn the_names_of_paths_are_known() {
        let template = "{.exec.args[0]}{range .ways[*]}{.name}{$.process.pid}{end}{..x}{@}";
        let template = Template::parse(template).expect("a template");
        let paths: Vec<String> = template
            .paths()
            .iter()
            .map(|names| names.join("."))
            .collect();
        assert_eq!(paths, ["exec.args", "", "process.pid", "ways", "", ""]);
    }
}
