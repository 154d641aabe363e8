import { defineConfig } from "vitest/config";

// The built page in a browser that lays it out, which jsdom does not.
export default defineConfig({
  test: { environment: "node", include: ["tests/browser/**/*.browser.ts"], testTimeout: 120_000, hookTimeout: 120_000 },
});
