// Somebody logs in to a bridge with an OpenID provider in a headless Chromium and out again, there too: without scripts, as pages must work, and with them,
// where the pages that only such people see are judged by the rules of axe-core.
//
//   node login.mjs BASE_URL LOGIN
//
// Prints what was seen and what is wrong as JSON. TOOLS names the folder in which `make tools` put the driver of the browser and axe-core.
import { PATIENCE, judging, launch } from './judge.mjs';

const [base, login] = process.argv.slice(2);
const report = { asked: false, landed: '', left: false, back: '', wrong: [] };
const judged = { judged: 0, reached: 0, wrong: report.wrong };
const { judge } = judging([base], judged);
const browser = await launch();

const path = (page) => new URL(page.url()).pathname;

async function there(page) {
  await page.locator('input[name=login]').fill(login);
  await page.locator('input[name=password]').fill('x');
  await page.locator('button[type=submit]').click();
  await page.waitForLoadState();
  if (page.url().includes('/interaction/')) await page.locator('button[type=submit]').click();
}

async function story(javaScriptEnabled) {
  const context = await browser.newContext({ javaScriptEnabled });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  page.on('console', (message) => {
    if (message.text().includes('Content Security Policy')) report.wrong.push(`console: ${message.text().slice(0, 300)}`);
  });
  const judging = (name) => (javaScriptEnabled ? judge(page, name) : undefined);
  await page.goto(`${base}/ui/ledger`);
  await judging('the login page');
  await page.getByRole('link', { name: 'Log in with Hospital' }).click();
  await page.locator('input[name=login]').waitFor();
  report.asked = true;
  await there(page);
  // The page in between goes on by itself, and is let in.
  await page.waitForURL(`${base}/ui/ledger`);
  report.landed = path(page);
  await page.reload();
  if (path(page) !== '/ui/ledger') report.wrong.push('a cookie was not kept');
  await page.getByRole('button', { name: 'Log out' }).click();
  await page.getByRole('heading', { name: 'You are logged out of this bridge' }).waitFor();
  report.left = true;
  await judging('the page of who logged out');
  await page.getByRole('link', { name: 'Log out of Hospital too' }).click();
  await page.locator('button[value=yes]').click();
  await page.waitForURL(`${base}/ui/login**`);
  report.back = path(page);
  const answer = await page.goto(`${base}/ui/ledger`);
  if (path(page) !== '/ui/login' || answer.status() !== 200) report.wrong.push(`still logged in: ${page.url()}`);
  await context.close();
}

try {
  await story(false);
  await story(true);
} catch (error) {
  report.wrong.push(String(error).slice(0, 600));
}
await browser.close();
console.log(JSON.stringify(report));
