// Looks at every page of a bridge in a headless Chromium: by the rules of axe-core, at 1280 and 320 pixels, in light and dark, and by the keyboard alone;
// then waits for a study that comes while a page is open, and opens a viewer.
//
//   node pages.mjs BASE_URL TOKEN STUDY_UID HOSTILE_STUDY_UID
//
// Prints "looking" when it waits for a study, and at the end what was seen and what is wrong as JSON.
// TOOLS names the folder in which `make tools` put the driver of the browser and axe-core; SCREENSHOTS, if it is set, one for pictures of every page.
import { readFileSync } from 'node:fs';
import { PATIENCE, judging, launch } from './judge.mjs';

const [base, token, study, hostile] = process.argv.slice(2);
const screenshots = process.env.SCREENSHOTS;
const wrong = [];
const report = { judged: 0, reached: 0, appeared: false, became_final: false, sharpened: 0, drawn: false, shared: false, operated: false, wrong };

const browser = await launch();
const { watch, judge, byKeyboard } = judging([base], report);

async function logIn(page) {
  await page.goto(`${base}/ui/ledger`);
  await page.getByLabel('Your token').fill(token);
  await page.keyboard.press('Enter');
  await page.waitForURL(`${base}/ui/ledger`, { timeout: PATIENCE });
}

async function everyPage() {
  const paths = {
    studies: '/ui/',
    filtered: '/ui/?patient=zyx&state=final',
    nothing: '/ui/?patient=nobodyatall',
    study: `/ui/studies/${study}`,
    hostile: `/ui/studies/${hostile}`,
    shared: '/ui/shared',
    ledger: '/ui/ledger',
    audit: '/ui/audit',
    auditFiltered: '/ui/audit?who=CT1&kind=110104&from=2001-01-01',
    auditNothing: '/ui/audit?kind=110105',
    auditWrong: '/ui/audit?from=never',
    operations: '/ui/operations',
    absent: '/ui/studies/1.2.3.4',
  };
  for (const colorScheme of ['light', 'dark']) {
    for (const width of [1280, 320]) {
      const context = await browser.newContext({ colorScheme, viewport: { width, height: 900 }, reducedMotion: 'reduce', bypassCSP: false });
      const page = await context.newPage();
      watch(page, ['404 (Not Found)', '400 (Bad Request)']);
      await page.goto(`${base}/ui/login`);
      await judge(page, `login ${colorScheme} ${width}`);
      if (width === 320) await byKeyboard(page, `login ${colorScheme}`);
      await logIn(page);
      for (const [name, path] of Object.entries(paths)) {
        await page.goto(base + path, { waitUntil: 'load' });
        await page.evaluate(() => document.querySelectorAll('details').forEach(one => { one.open = true; }));
        await judge(page, `${name} ${colorScheme} ${width}`);
        if (colorScheme === 'light') await byKeyboard(page, `${name} ${width}`);
        if (screenshots) await page.screenshot({ path: `${screenshots}/${name}-${colorScheme}-${width}.png`, fullPage: true });
      }
      await context.close();
    }
  }
}

// A study that comes while the list is open, seen until it is final; nothing is loaded anew by hand.
async function live() {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
  const page = await context.newPage();
  watch(page);
  await logIn(page);
  const listening = page.waitForResponse(response => response.url().endsWith('/api/v1/events'), { timeout: PATIENCE });
  await page.goto(`${base}/ui/`);
  await listening;
  const cards = page.locator('[data-study]');
  const before = await cards.count();
  await page.evaluate(() => { window.sameDocument = true; });
  console.log('looking');
  await page.waitForFunction(count => document.querySelectorAll('[data-study]').length > count, before, { timeout: PATIENCE }).catch(() => {});
  report.appeared = (await cards.count()) > before;
  const newest = cards.first();
  await page.waitForFunction(() => document.querySelector('[data-study] .badges')?.textContent.includes('final'), null, { timeout: PATIENCE }).catch(() => {});
  report.became_final = (await newest.locator('.badges').textContent()).includes('final') && (await page.evaluate(() => window.sameDocument === true));
  await page.waitForFunction(() => [...document.querySelectorAll('img.sharp')].every(one => one.complete && one.naturalWidth > 0 && !one.classList.contains('waits')), null, { timeout: PATIENCE }).catch(() => wrong.push('a picture does not sharpen'));
  report.sharpened = await page.locator('img.sharp').count();
  await page.goto(`${base}/ui/studies/${study}`);
  await page.getByRole('button', { name: 'Verify against the ledger' }).click();
  await page.getByText('each exactly as it was received').waitFor({ timeout: PATIENCE }).catch(() => wrong.push('nothing is proven'));
  await context.close();
}

// The viewer, by the link on the study's page: it is let in by the same login, and draws.
async function viewer() {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
  const page = await context.newPage();
  watch(page);
  page.on('response', response => {
    if (response.status() >= 400) wrong.push(`${response.status()} ${response.url()}`);
  });
  await logIn(page);
  await page.goto(`${base}/ui/studies/${study}`);
  await page.getByRole('link', { name: 'Open in OHIF' }).click();
  await page.locator('.cornerstone-canvas').first().waitFor({ timeout: PATIENCE });
  report.drawn = await page.waitForFunction(() => {
    const seen = document.querySelector('.cornerstone-canvas');
    const { width, height } = seen ?? {};
    if (!width || !height) return false;
    const shades = new Set(seen.getContext('2d').getImageData(0, 0, width, height).data.filter((_, at) => at % 4 === 0));
    return shades.size > 16;
  }, null, { timeout: PATIENCE }).then(() => true, () => false);
  await context.close();
}

// A peer is called and the audit trail verified and downloaded, by the keyboard.
async function operations() {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, acceptDownloads: true });
  const page = await context.newPage();
  watch(page);
  await logIn(page);
  await page.getByRole('link', { name: 'Operations' }).click();
  await page.getByRole('button', { name: 'C-ECHO to AWAY<b>' }).focus();
  await page.keyboard.press('Enter');
  await page.getByRole('status').filter({ hasText: 'C-ECHO to AWAY<b>: connection refused' }).waitFor({ timeout: PATIENCE });
  await judge(page, 'operations after C-ECHO');
  await page.getByRole('link', { name: 'Audit' }).click();
  await page.getByLabel('Who').fill('CT1');
  const coming = page.waitForEvent('download', { timeout: PATIENCE });
  await page.getByRole('button', { name: 'Download as CSV' }).click();
  const table = readFileSync(await (await coming).path(), 'utf8');
  await page.getByRole('button', { name: 'Verify the chain' }).focus();
  await page.keyboard.press('Enter');
  await page.getByText('each as it was written').waitFor({ timeout: PATIENCE });
  await judge(page, 'audit after verifying');
  report.operated = table.includes('"CT1 (127.0.0.1)') && table.endsWith('\r\n');
  await context.close();
}

// A link that is made on the study's page, opened by somebody without a login: what is behind its # goes out of the address.
async function shared() {
  const context = await browser.newContext();
  const page = await context.newPage();
  watch(page);
  await logIn(page);
  await page.goto(`${base}/ui/studies/${study}`);
  await page.locator('summary', { hasText: 'Make a link' }).click();
  await page.getByLabel('For whom').fill('Dr X');
  await page.getByRole('button', { name: 'Make a link' }).click();
  const link = await page.locator('.code').textContent();
  await context.close();
  const guests = await browser.newContext();
  const guest = await guests.newPage();
  watch(guest);
  await guest.goto(link);
  await guest.waitForFunction(() => location.hash === '', null, { timeout: PATIENCE });
  await guest.getByRole('button', { name: 'Look at the images' }).click();
  await guest.waitForURL(`${base}/ui/studies/${study}`, { timeout: PATIENCE });
  await guest.waitForFunction(() => [...document.querySelectorAll('img.sharp')].some(one => one.complete && one.naturalWidth > 0), null, { timeout: PATIENCE });
  report.shared = true;
  await guests.close();
}

try {
  await live();
  await shared();
  await operations();
  await everyPage();
  await viewer();
} catch (error) {
  wrong.push(String(error).slice(0, 500));
} finally {
  await browser.close();
}
console.log(JSON.stringify(report, null, 1));
