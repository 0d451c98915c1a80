// What every page is judged by: the rules of axe-core, the width of the window, the keyboard alone, and that nothing is said on the console and nothing
// comes from elsewhere. TOOLS names the folder in which `make tools` put the driver of the browser and axe-core.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const tools = createRequire(`${process.env.TOOLS}/browser/`);
const { chromium } = tools('playwright-core');
const axe = readFileSync(tools.resolve('axe-core/axe.min.js'), 'utf8');

export const PATIENCE = Number(process.env.PATIENCE_MS ?? 90_000);
const RULES = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'];

export function launch() {
  return chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: ['--no-sandbox', '--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader', '--ignore-gpu-blocklist'],
  });
}

// `bases` are the servers that pages may ask; `report` has `wrong`, `judged` and `reached`.
export function judging(bases, report) {
  const { wrong } = report;

  function watch(page, expected = []) {
    page.on('console', message => {
      if (message.type() !== 'error' && !message.text().includes('Content Security Policy')) return;
      if (!expected.some(text => message.text().includes(text))) wrong.push(`console: ${message.text().slice(0, 300)}`);
    });
    page.on('pageerror', error => wrong.push(`script: ${String(error).slice(0, 300)}`));
    page.on('dialog', dialog => {
      wrong.push(`a script of somebody else ran: ${dialog.message()}`);
      void dialog.dismiss();
    });
    page.on('request', request => {
      if (!/^(data|blob):/.test(request.url()) && !bases.some(base => request.url().startsWith(`${base}/`))) wrong.push(`another origin: ${request.url()}`);
    });
  }

  // axe-core is put in from outside, past the page's own rules for scripts.
  async function judge(page, name) {
    await page.evaluate(axe);
    const { violations } = await page.evaluate(rules => globalThis.axe.run(document, { runOnly: rules }), RULES);
    for (const { id, nodes } of violations) wrong.push(`${name}: ${id} at ${nodes.map(node => node.target.join(' ')).slice(0, 3).join(', ')}`);
    const facts = await page.evaluate(() => ({
      title: document.title,
      headings: document.querySelectorAll('h1').length,
      lang: document.documentElement.lang,
      over: document.documentElement.scrollWidth - document.documentElement.clientWidth,
      widest: [...document.querySelectorAll('body *')].filter(one => one.getBoundingClientRect().right > innerWidth + 1 && !one.closest('.scroll, .skip, .pic')).slice(0, 2).map(one => one.outerHTML.slice(0, 80)),
    }));
    if (facts.over > 0 || facts.widest.length) wrong.push(`${name}: ${facts.over} pixels too wide: ${facts.widest.join(' ')}`);
    if (!facts.title.includes(' · ') || facts.headings !== 1 || facts.lang !== 'en') wrong.push(`${name}: ${JSON.stringify(facts)}`);
    report.judged += 1;
  }

  // Whatever can be used is reached with Tab, in order, and it is seen where one is.
  async function byKeyboard(page, name) {
    const wanted = await page.evaluate(() => {
      const all = [...document.querySelectorAll('a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex="0"]')];
      const shown = all.filter(one => one.checkVisibility());
      shown.forEach((one, number) => one.setAttribute('data-control', String(number)));
      document.activeElement?.blur();
      return shown.length;
    });
    const reached = new Set();
    // Parts of a date take a step each.
    for (let step = 0; step < wanted * 4 + 8 && reached.size < wanted; step += 1) {
      await page.keyboard.press('Tab');
      const { control, seen } = await page.evaluate(() => {
        const one = document.activeElement;
        const { outlineStyle, outlineWidth } = getComputedStyle(one);
        return { control: one.getAttribute('data-control'), seen: outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2 };
      });
      if (control === null || reached.has(control)) continue;
      reached.add(control);
      if (!seen) wrong.push(`${name}: the focus on control ${control} is not seen`);
    }
    if (reached.size !== wanted) wrong.push(`${name}: ${reached.size} of ${wanted} controls are reached by the keyboard`);
    report.reached += reached.size;
  }

  return { watch, judge, byKeyboard };
}
