//! In which form things are printed.

use super::{Refused, Screen, json::Json, template::Template};

/// What `-o` takes, where a thing is a line.
pub(super) const FORMS: [&str; 4] = ["table", "wide", "json", "jsonpath="];
pub(super) const VALUE: &str = "table|wide|json|jsonpath=TEMPLATE";
pub(super) const HELP: &str = "\
How to print: `table`, of which a terminal shows what fits; `wide`, with more columns and nothing cut; `json`, protobuf JSON with one object a line; \
or of each such object what a template says as for kubectl, such as `jsonpath={.process.comm}{\"\\n\"}`";

/// A form.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Output {
    /// Text in columns
    Table,
    /// The same with more columns, and nothing cut
    Wide,
    /// Protobuf JSON, an object a line
    Json,
    /// Of each object what a template says
    JsonPath(Template),
}

/// Reads what `-o` takes.
pub(super) fn parse_output(text: &str) -> Result<Output, String> {
    match text {
        "table" => Ok(Output::Table),
        "wide" => Ok(Output::Wide),
        "json" => Ok(Output::Json),
        _ => match text.strip_prefix("jsonpath=") {
            Some(template) => Template::parse(template).map(Output::JsonPath),
            None => Err(format!("there is no such form; there are {VALUE}")),
        },
    }
}

impl Output {
    /// More columns are wanted.
    pub(super) fn is_wide(&self) -> bool {
        matches!(self, Self::Wide)
    }

    /// Objects are wanted, and no columns.
    pub(super) fn is_json(&self) -> bool {
        matches!(self, Self::Json | Self::JsonPath(_))
    }

    /// Prints messages of that name as objects, if those are wanted. Refused if the template asks for what they do not have.
    pub(super) fn json(&self, name: &str, screen: &Screen<'_>) -> anyhow::Result<Option<Json>> {
        let json = Json::of(name)?;
        Ok(match self {
            Self::Table | Self::Wide => None,
            Self::Json => Some(json),
            Self::JsonPath(template) => {
                let template = template.clone();
                let json = json.through(template, screen.look.is_terminal());
                Some(json.map_err(Refused)?)
            }
        })
    }
}
