import { render, screen } from "@testing-library/svelte";
import { expect, test } from "vitest";
import App from "../src/App.svelte";
import { bus } from "../src/bus.svelte";
import de from "../src/words/de.json";
import en from "../src/words/en.json";
import { list, size, speak, t } from "../src/words/words.svelte";
import { snapshot } from "./scene";

const holes = (text: string): string[] => [...text.matchAll(/{{(\w+)}}/g)].map((match) => match[1] ?? "").sort();

test("each language has all words, with the same holes", () => {
  expect(Object.keys(de)).toEqual(Object.keys(en));
  for (const key of Object.keys(en) as (keyof typeof en)[]) expect(holes(de[key]), key).toEqual(holes(en[key]));
});

test("the window speaks German to whoever does", async () => {
  await speak(["de-AT", "en"]);
  bus.view = { engine: "running", snapshot: snapshot() };
  render(App);
  screen.getByRole("region", { name: "Um mich herum" });
  expect(document.documentElement.lang).toBe("de");
  expect(t("pair_left", { count: 1 })).toBe("Gilt noch 1 Sekunde");
  expect(size(1_500_000_000)).toBe("1,5 GB");
});

test("an unknown language becomes English", async () => {
  await speak(["fr"]);
  expect(t("machine")).toBe("This machine");
  expect(size(32_000_000_000)).toBe("32 GB");
  expect(size(512)).toBe("512 byte");
  expect(list(["attic", "den", "loft"])).toBe("attic, den, and loft");
});
