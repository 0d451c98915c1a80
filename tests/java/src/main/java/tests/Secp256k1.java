package tests;

import java.math.BigInteger;
import java.security.KeyStore;
import java.security.Security;
import java.security.cert.X509Certificate;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.Date;

import org.bouncycastle.asn1.x500.X500Name;
import org.bouncycastle.cert.jcajce.JcaX509CertificateConverter;
import org.bouncycastle.cert.jcajce.JcaX509v3CertificateBuilder;
import org.bouncycastle.jce.ECNamedCurveTable;
import org.bouncycastle.jce.provider.BouncyCastleProvider;
import org.bouncycastle.jce.spec.ECPrivateKeySpec;
import org.bouncycastle.jce.spec.ECPublicKeySpec;
import org.bouncycastle.operator.jcajce.JcaContentSignerBuilder;

/** Keys of the ledger, which the JDK does not know since version 16. */
final class Secp256k1 {
    private Secp256k1() {}

    /** A store with one key, called "key", and a certificate that vouches for itself. */
    static KeyStore keyStore(String digits, char[] password) throws Exception {
        // The JDK's own provider takes such a key and fails when it signs; without it, Bouncy Castle does everything on curves.
        Security.removeProvider("SunEC");
        // But for x25519, of which TLS wants the JDK's form.
        System.setProperty("jdk.tls.namedGroups", "secp256r1,secp384r1");
        Security.insertProviderAt(new BouncyCastleProvider(), 1);
        var curve = ECNamedCurveTable.getParameterSpec("secp256k1");
        var secret = new BigInteger(digits.replaceFirst("^0x", ""), 16);
        var factory = java.security.KeyFactory.getInstance("EC", "BC");
        var privateKey = factory.generatePrivate(new ECPrivateKeySpec(secret, curve));
        var publicKey = factory.generatePublic(new ECPublicKeySpec(curve.getG().multiply(secret), curve));
        var name = new X500Name("CN=iti43 client");
        var now = Instant.now();
        var builder = new JcaX509v3CertificateBuilder(name, BigInteger.ONE, Date.from(now.minus(1, ChronoUnit.DAYS)),
            Date.from(now.plus(30, ChronoUnit.DAYS)), name, publicKey);
        var signer = new JcaContentSignerBuilder("SHA256withECDSA").setProvider("BC").build(privateKey);
        X509Certificate certificate = new JcaX509CertificateConverter().setProvider("BC").getCertificate(builder.build(signer));
        KeyStore store = KeyStore.getInstance("PKCS12", "BC");
        store.load(null, null);
        store.setKeyEntry("key", privateKey, password, new X509Certificate[] {certificate});
        return store;
    }
}
