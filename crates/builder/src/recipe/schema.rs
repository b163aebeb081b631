//! Recipes as a JSON schema, for editors.

use serde_json::{Map, Value as Json, json};

use super::keys::{Key, Value, keys_in};

/// The schema of recipes.
pub fn schema() -> Json {
    let mut schema = table("");
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("A recipe of larder");
    schema
}

fn table(path: &str) -> Json {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for key in keys_in(path) {
        let name = key.path.rsplit('.').next().unwrap_or(key.path);
        if key.required {
            required.push(name);
        }
        let mut property = of(key);
        property["description"] = json!(key.words);
        properties.insert(name.to_owned(), property);
    }
    json!({
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

fn of(key: &Key) -> Json {
    let text = || json!({ "type": "string" });
    match key.value {
        Value::Text => text(),
        Value::OneOf(words) => json!({ "enum": words }),
        Value::Number => json!({ "type": "integer", "minimum": 0 }),
        Value::Flag => json!({ "type": "boolean" }),
        Value::Numbers => {
            json!({ "type": "array", "items": { "type": "integer", "minimum": 0 } })
        }
        Value::Texts => json!({ "type": "array", "items": text() }),
        Value::Table => table(key.path),
        Value::Tables => json!({ "type": "array", "items": table(key.path) }),
        Value::TextsOrTables => {
            json!({ "type": "array", "items": { "anyOf": [text(), table(key.path)] } })
        }
        Value::TextTable => json!({ "type": "object", "additionalProperties": text() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_knows_nested_keys_and_what_must_be_there() {
        let schema = schema();
        assert_eq!(schema["required"], json!(["name", "distribution", "stage"]));
        let stage = &schema["properties"]["stage"]["items"];
        assert_eq!(stage["properties"]["files"]["items"]["required"], json!(["to"]));
        assert_eq!(schema["properties"]["disk"]["properties"]["boot"]["enum"][1], "bios");
    }
}
