"""What a service says about itself: its OpenAPI document and the page that shows it."""

from __future__ import annotations

import html
import json
from typing import Any

from nbdeploy.signature import Signature
from nbdeploy.signature_schemes import json_schema

_STATIC = "./static_content"  # Swagger UI's files, which BentoML ships and mounts


def openapi(name: str, version: str, signature: Signature) -> dict[str, Any]:
    """The OpenAPI document: every column, and an example that is a real row."""
    row = json_schema(signature)
    split = {
        "type": "object",
        "properties": {
            "columns": {"type": "array", "items": {"type": "string", "enum": signature.names}},
            "data": {"type": "array", "minItems": 1, "items": {"type": "array"}},
        },
        "required": ["columns", "data"],
        "additionalProperties": False,
    }
    example = dict(signature.shown().example or {})
    body = {
        "schema": {
            "oneOf": [
                {"$ref": "#/components/schemas/Row"},
                {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Row"}},
                split,
            ]
        },
        "examples": {
            "record": {"summary": "One record", "value": example},
            "records": {"summary": "A list of records", "value": [example]},
            "split": {
                "summary": "Columns and data",
                "value": {"columns": list(example), "data": [list(example.values())]},
            },
        },
    }
    proba = {"name": "proba", "in": "query", "schema": {"type": "boolean", "default": False},
             "description": "Add the probabilities of the classes."}  # fmt: skip
    refused = {
        "description": "Refused",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}},
    }
    answer = {
        "description": "One prediction per row",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Answer"}}},
    }
    text = {"description": "Yes", "content": {"text/plain": {"schema": {"type": "string"}}}}
    health = {"get": {"responses": {"200": text}}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": name,
            "version": version,
            "description": f"Predicts {signature.target or 'one value'} ({signature.task}) from {len(signature.columns)} columns.",
        },
        "paths": {
            "/predict": {
                "post": {
                    "summary": "Predict one or many rows",
                    "operationId": "predict",
                    "parameters": [proba] if signature.classes else [],
                    "requestBody": {"required": True, "content": {"application/json": body}},
                    "responses": {
                        "200": answer, "400": refused, "413": refused, "415": refused, "422": refused,
                    },
                }
            },
            "/signature": {"get": {"summary": "Names, types and ranges of the inputs", "operationId": "signature",
                                   "responses": {"200": {"description": "The signature", "content": {"application/json": {}}}}}},
            "/explain": {
                "post": {
                    "summary": "Split the answer to each row into one contribution per column",
                    "description": "Shapley values, at most 100 rows. Needs the extra 'explain' where the service runs.",
                    "operationId": "explain",
                    "requestBody": {"required": True, "content": {"application/json": body}},
                    "responses": {
                        "200": {
                            "description": "Per row, base plus the sum of its contributions is its value",
                            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Explanation"}}},
                        },
                        "400": refused, "413": refused, "415": refused, "422": refused, "501": refused,
                    },
                }
            },
            "/card": {"get": {"summary": "The model card", "operationId": "card",
                              "responses": {"200": {"description": "A page without scripts",
                                                    "content": {"text/html": {"schema": {"type": "string"}}}}}}},
            "/livez": health,
            "/readyz": health,
            "/metrics": {"get": {"summary": "Prometheus metrics", "responses": {"200": text}}},
        },
        "components": {
            "schemas": {
                "Row": row,
                "Answer": {
                    "type": "object",
                    "properties": {
                        "predictions": {"type": "array", "description": "Null where the model's value is not finite."},
                        "prediction_ids": {"type": "array", "items": {"type": "string"}},
                        "version": {"type": "string"},
                        "probabilities": {"type": "array"},
                        "classes": {"type": "array"},
                    },
                    "required": ["predictions", "prediction_ids", "version"],
                },
                "Explanation": {
                    "type": "object",
                    "properties": {
                        "output": {"type": "string", "description": "What is explained."},
                        "base": {"description": "Its mean over training rows: a number, or one per entry of classes."},
                        "values": {"type": "array", "description": "What it is for each row."},
                        "contributions": {
                            "type": "array",
                            "items": {"type": "object", "description": "Per column what it adds to the base."},
                        },
                        "classes": {"type": "array", "description": "What each number is of, where there are several."},
                        "method": {"type": "string"},
                        "background_rows": {"type": "integer"},
                        "version": {"type": "string"},
                    },
                    "required": ["output", "base", "values", "contributions", "method", "background_rows", "version"],
                },
                "Refusal": {
                    "type": "object",
                    "properties": {
                        "error": {"type": "string"},
                        "problems": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "properties": {
                                    "row": {"type": ["integer", "null"]},
                                    "column": {"type": ["string", "null"]},
                                    "expected": {"type": "string"},
                                    "got": {"type": "string"},
                                    "hint": {"type": "string"},
                                },
                            },
                        },
                    },
                    "required": ["error", "problems"],
                },
            }
        },
    }  # fmt: skip


def index_page(name: str, version: str, signature: Signature) -> str:
    """A page with the columns, a request to copy and Swagger UI. Nothing in it comes from a third party."""
    rows = "".join(
        f"<tr><td><code>{html.escape(column)}</code></td><td>{html.escape(facts['type'])}</td>"
        f"<td>{'yes' if facts['nulls'] else ''}</td><td>{html.escape(str(facts['seen']))}</td></tr>"
        for column, facts in signature.table().to_dict("index").items()
    )
    example = json.dumps(dict(signature.shown().example or {}), indent=1)
    title = f"{html.escape(name)} <small>{html.escape(version)}</small>"
    return _PAGE.format(
        title=html.escape(f"{name} {version}"), heading=title, rows=rows, example=html.escape(example),
        predicts=html.escape(f"Predicts {signature.target or 'one value'} ({signature.task})."), static=_STATIC,
    )  # fmt: skip


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="{static}/swagger-ui.css">
<style>
 body {{ font: 15px/1.5 system-ui, sans-serif; color: #24292f; background: #fff; margin: 0 auto; padding: 24px; max-width: 1080px }}
 h1 small {{ color: #0969da; font-weight: 500 }}
 table {{ border-collapse: collapse; width: 100% }} th, td {{ text-align: left; padding: 4px 12px; border-bottom: 1px solid #d0d7de }}
 pre {{ background: #f6f8fa; padding: 12px; overflow: auto; border-radius: 6px }}
 .swagger-ui .information-container {{ display: none }}
</style></head><body>
<h1>{heading}</h1><p>{predicts} <a href="signature">signature</a> · <a href="card">model card</a> · <a href="metrics">metrics</a> · <a href="openapi.json">OpenAPI</a></p>
<table><thead><tr><th>column</th><th>type</th><th>nulls</th><th>seen in training</th></tr></thead><tbody>{rows}</tbody></table>
<h2>A row to send to <code>POST /predict</code></h2><pre>{example}</pre>
<div id="swagger"></div>
<script src="{static}/swagger-ui-bundle.js"></script>
<script>window.SwaggerUIBundle && SwaggerUIBundle({{ url: "./openapi.json", dom_id: "#swagger", deepLinking: true }});</script>
</body></html>
"""
