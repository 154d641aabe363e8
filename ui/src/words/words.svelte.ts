// The window's words in the user's language.
import i18next from "i18next";
import de from "./de.json";
import en from "./en.json";

export const LANGUAGES = ["en", "de"] as const;

export type Key = keyof typeof en;

const spoken = $state({ language: "en" });

/** Speaks the first of these languages that it knows, English if none. */
export async function speak(wanted: readonly string[]): Promise<void> {
  const known = wanted.map((tag) => tag.toLowerCase().split("-")[0] ?? "");
  const language = known.find((tag) => (LANGUAGES as readonly string[]).includes(tag)) ?? "en";
  await i18next.init({
    lng: language,
    fallbackLng: "en",
    resources: { en: { translation: en }, de: { translation: de } },
    keySeparator: false,
    nsSeparator: false,
    showSupportNotice: false,
    // Svelte escapes what it puts into the page.
    interpolation: { escapeValue: false },
  });
  spoken.language = language;
  document.documentElement.lang = language;
}

/** The words for a key, in the language that is spoken. */
export function t(key: Key | PluralKey, holes: Record<string, string | number> = {}): string {
  const count = typeof holes["count"] === "number" ? { count: holes["count"] } : {};
  return i18next.t(key as string, { lng: spoken.language, replace: holes, ...count });
}

type PluralKey = Key extends infer K ? (K extends `${infer Stem}_other` ? Stem : never) : never;

/** A size as people write it: `1.5 GB`. */
export function size(bytes: number): string {
  const units = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte", "petabyte"];
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  const digits = unit > 0 && value < 9.95 ? 1 : 0;
  const format = { style: "unit", unit: units[unit], maximumFractionDigits: digits } as const;
  return new Intl.NumberFormat(spoken.language, format).format(value).replaceAll("\u00a0", " ");
}

/** Several things as a sentence lists them. */
export function list(items: string[]): string {
  return new Intl.ListFormat(spoken.language, { type: "conjunction" }).format(items);
}
