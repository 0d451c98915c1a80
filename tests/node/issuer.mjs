// An OpenID provider, as others make and certify it, on a free port of this machine, with people who have no passwords.
//
//   node issuer.mjs
//
// Prints its issuer URL when it is ready. TOOLS names the folder in which `make tools` put the provider. People log in by the provider's own forms for
// developers: the login is who they are. Ends when its standard input does.
import { createServer } from 'node:http';
import { generateKeyPairSync } from 'node:crypto';
import { pathToFileURL } from 'node:url';

const { default: Provider } = await import(pathToFileURL(`${process.env.TOOLS}/node/node_modules/oidc-provider/lib/index.js`));

const AUDIENCE = 'https://pacs.example/api';
const SECRET = 'a secret: with % and +';
// What is known of people and programs, by their subjects. ACCOUNT is a patient's.
const known = {
  'radiologist-1': { name: 'Dr <b>Röntgen</b>', groups: ['staff', 'radiology'] },
  'porter-2': { name: 'Porter', groups: ['staff'] },
  'patient-3': { name: 'Patient', patient_account: process.env.ACCOUNT },
  'viewer-program': { groups: ['viewers'] },
  'other-program': {},
};

const key = (kid, alg, type, options) => {
  const { privateKey } = generateKeyPairSync(type, options);
  return { ...privateKey.export({ format: 'jwk' }), kid, alg, use: 'sig' };
};
const keys = [
  key('r1', 'RS256', 'rsa', { modulusLength: 2048 }),
  key('p1', 'PS256', 'rsa', { modulusLength: 2048 }),
  key('e1', 'ES256', 'ec', { namedCurve: 'P-256' }),
  key('d1', 'EdDSA', 'ed25519', {}),
];
const algorithms = keys.map((one) => one.alg);

// Anything on this machine's loopback, whatever the port (RFC 8252 7.3).
const native = {
  application_type: 'native',
  redirect_uris: ['http://127.0.0.1/ui/login/callback'],
  post_logout_redirect_uris: ['http://127.0.0.1/ui/login'],
  grant_types: ['authorization_code'],
  response_types: ['code'],
};
const program = { grant_types: ['client_credentials'], redirect_uris: [], response_types: [], client_secret: SECRET };
const clients = [
  { ...native, client_id: 'pacs', client_secret: SECRET },
  { ...native, client_id: 'pacs-public', token_endpoint_auth_method: 'none', id_token_signed_response_alg: 'EdDSA' },
  { ...native, client_id: 'phone', token_endpoint_auth_method: 'none', id_token_signed_response_alg: 'ES256' },
  { ...program, client_id: 'viewer-program' },
  { ...program, client_id: 'other-program' },
];

const configuration = {
  clients,
  jwks: { keys },
  cookies: { keys: ['not a secret here'] },
  claims: { openid: ['sub'], profile: ['name'], groups: ['groups', 'patient_account'] },
  scopes: ['openid', 'groups'],
  enabledJWA: { idTokenSigningAlgValues: algorithms },
  findAccount: (_, id) => known[id] && { accountId: id, claims: () => ({ sub: id, ...known[id] }) },
  extraTokenClaims: (_, token) => known[token.accountId ?? token.clientId],
  pkce: { required: () => true },
  features: {
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => undefined,
      // urn:NAME:ALG: for whom a token is and how it is signed.
      getResourceServerInfo: (_, resource) => ({
        scope: 'read',
        audience: resource.startsWith('urn:pacs:') ? AUDIENCE : resource,
        accessTokenFormat: 'jwt',
        accessTokenTTL: Number(process.env.TTL ?? 300),
        jwt: { sign: { alg: algorithms.find((alg) => resource.endsWith(alg)) ?? 'RS256' } },
      }),
    },
  },
};

const server = createServer();
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  server.on('request', new Provider(issuer, configuration).callback());
  console.log(issuer);
});
process.stdin.resume().on('end', () => process.exit(0));
