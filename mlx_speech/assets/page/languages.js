/** The languages that Whisper knows, by their codes; the browser has the names. */

import { element } from "./dom.js";

const CODES = `
  en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr
  bg lt la mi ml cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn
  yo so af oc ka be tg sd gu am yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su
  yue
`;

/** Fill a list of languages, by name; the first entry leaves it to the model. */
export function fillLanguages(list) {
  const names = new Intl.DisplayNames(["en"], { type: "language" });
  const entries = CODES.trim().split(/\s+/).map((code) => ({ code, name: names.of(code) ?? code }));
  entries.sort((one, other) => one.name.localeCompare(other.name));
  const options = entries.map(({ code, name }) => element("option", { value: code, textContent: name }));
  list.replaceChildren(element("option", { value: "", textContent: "Detect the language" }), ...options);
}
