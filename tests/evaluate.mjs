// GitHub's own evaluator of expressions: reads one JSON request a line, writes one JSON answer a line.
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const place = `${process.argv[2]}/node_modules/@actions/expressions/dist`;
const { Evaluator, Lexer, Parser, data } = await import(pathToFileURL(`${place}/index.js`).href);
const { replacer } = await import(pathToFileURL(`${place}/data/replacer.js`).href);
const { reviver } = await import(pathToFileURL(`${place}/data/reviver.js`).href);
const STATUS = ["success", "failure", "cancelled", "always"];

function evaluate({ expression, contexts, status }) {
  const functions = STATUS.map((name) => ({ name, minArgs: 0, maxArgs: 0, call: () => new data.BooleanData(status[name]) }));
  const { tokens } = new Lexer(expression).lex();
  const tree = new Parser(tokens, Object.keys(contexts), functions).parse();
  const values = JSON.parse(JSON.stringify(contexts), reviver);
  const result = new Evaluator(tree, values, new Map(functions.map((f) => [f.name, f]))).evaluate();
  return { value: JSON.parse(JSON.stringify(result, replacer)), text: result.coerceString() };
}

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    answer = evaluate(JSON.parse(line));
  } catch (error) {
    answer = { error: `${error.name}: ${error.message}` };
  }
  console.log(JSON.stringify(answer));
}
