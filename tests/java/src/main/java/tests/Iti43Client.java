package tests;

import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.DigestInputStream;
import java.security.KeyStore;
import java.security.MessageDigest;
import java.security.Signature;
import java.security.PrivateKey;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;

import javax.security.auth.callback.Callback;
import javax.security.auth.callback.CallbackHandler;

import com.fasterxml.jackson.databind.ObjectMapper;
import org.apache.camel.Exchange;
import org.apache.camel.impl.engine.SimpleCamelContext;
import org.apache.camel.support.SimpleRegistry;
import org.apache.camel.support.jsse.SSLContextParameters;
import org.apache.cxf.binding.soap.SoapFault;
import org.apache.cxf.interceptor.Interceptor;
import org.apache.cxf.message.Message;
import org.apache.cxf.transport.http.HTTPConduit;
import org.apache.cxf.ws.security.wss4j.WSS4JOutInterceptor;
import org.apache.wss4j.common.ConfigurationConstants;
import org.apache.wss4j.common.crypto.Merlin;
import org.apache.wss4j.common.ext.WSPasswordCallback;
import org.openehealth.ipf.commons.ihe.xds.core.ebxml.ebxml30.RetrieveDocumentSetRequestType;
import org.openehealth.ipf.commons.ihe.xds.core.ebxml.ebxml30.RetrieveDocumentSetResponseType;
import org.openehealth.ipf.commons.ihe.xds.core.requests.DocumentReference;
import org.openehealth.ipf.commons.ihe.xds.core.requests.RetrieveDocumentSet;
import org.openehealth.ipf.commons.ihe.xds.core.responses.ErrorInfo;
import org.openehealth.ipf.commons.ihe.xds.core.responses.RetrievedDocument;
import org.openehealth.ipf.commons.ihe.xds.core.responses.RetrievedDocumentSet;
import org.openehealth.ipf.platform.camel.ihe.xds.core.converters.EbXML30Converters;

/**
 * A consumer of signed ITI-43 retrieval made of other people's software: the endpoint xds-iti43 of Open eHealth IPF, on Apache CXF, with WSS4J for
 * the signature. It knows nothing of the bridge but what an IHE actor is told: address, repository and document.
 *
 * <p>Arguments are NAME=VALUE. {@code store}, {@code alias}: a PKCS #12 file with a key, as keytool writes it, with the password "password".
 * {@code secp256k1}: instead of it, a file with such a private key in hexadecimal digits; only then Bouncy Castle is used.
 * {@code sign}, {@code to}: signs a file with that key and writes the signature. Otherwise {@code url}, {@code authority} (PEM), {@code repository},
 * {@code document} (may be repeated), {@code save} (a directory); what comes back is printed as a line of JSON. {@code fault400=true} has CXF
 * read faults on HTTP status 400; {@code spoil=true} changes the message after it was signed.
 */
public final class Iti43Client {
    private static final char[] PASSWORD = "password".toCharArray();
    private static final String WSU = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd";
    private static final String WSA = "http://www.w3.org/2005/08/addressing";
    private static final String SOAP = "http://www.w3.org/2003/05/soap-envelope";

    private final Map<String, List<String>> arguments = new HashMap<>();
    private final KeyStore keys;
    private final String alias;

    private Iti43Client(String[] given) throws Exception {
        for (String argument : given) {
            String[] parts = argument.split("=", 2);
            arguments.computeIfAbsent(parts[0], name -> new ArrayList<>()).add(parts[1]);
        }
        if (has("secp256k1")) {
            keys = Secp256k1.keyStore(Files.readString(Path.of(one("secp256k1"))).trim(), PASSWORD);
            alias = "key";
        } else {
            keys = KeyStore.getInstance(Path.of(one("store")).toFile(), PASSWORD);
            alias = one("alias");
        }
    }

    private boolean has(String name) {
        return arguments.containsKey(name);
    }

    private String one(String name) {
        return arguments.get(name).get(0);
    }

    public static void main(String[] given) throws Exception {
        Iti43Client client = new Iti43Client(given);
        if (client.has("sign")) {
            client.sign(Path.of(client.one("sign")), Path.of(client.one("to")));
            return;
        }
        System.out.println(new ObjectMapper().writeValueAsString(client.retrieve()));
        // CXF's threads are no reason to stay.
        System.exit(0);
    }

    private void sign(Path file, Path to) throws Exception {
        Signature signature = Signature.getInstance("SHA256withECDSA");
        signature.initSign((PrivateKey) keys.getKey(alias, PASSWORD));
        signature.update(Files.readAllBytes(file));
        Files.write(to, signature.sign());
    }

    private Map<String, Object> retrieve() throws Exception {
        SimpleRegistry registry = new SimpleRegistry();
        List<Interceptor<? extends Message>> out = new ArrayList<>();
        out.add(signer());
        if (has("spoil")) {
            out.add(new Spoiler());
        }
        registry.bind("out", out);
        registry.bind("tls", trusting());
        Map<String, Object> properties = new HashMap<>();
        if (has("fault400")) {
            properties.put(HTTPConduit.PROCESS_FAULT_ON_HTTP_400, true);
        }
        registry.bind("properties", properties);
        try (SimpleCamelContext camel = new SimpleCamelContext()) {
            camel.getCamelContextExtension().setRegistry(registry);
            camel.start();
            String where = one("url").replaceFirst("^https", "xds-iti43")
                + "?secure=true&audit=false&outInterceptors=#out&sslContextParameters=#tls&properties=#properties";
            Exchange exchange = camel.createProducerTemplate().request(where, this::ask);
            return said(exchange);
        }
    }

    private void ask(Exchange exchange) {
        RetrieveDocumentSet request = new RetrieveDocumentSet();
        for (String document : arguments.get("document")) {
            request.getDocuments().add(new DocumentReference(one("repository"), document, null));
        }
        RetrieveDocumentSetRequestType body = EbXML30Converters.convert(request);
        exchange.getIn().setBody(body);
    }

    private Map<String, Object> said(Exchange exchange) throws Exception {
        Map<String, Object> said = new HashMap<>();
        Throwable failure = exchange.getException();
        if (failure != null) {
            StringBuilder words = new StringBuilder();
            for (Throwable cause = failure; cause != null; cause = cause.getCause()) {
                words.append(cause).append('\n');
                if (cause instanceof SoapFault fault) {
                    said.put("fault", faultOf(fault));
                }
                if (cause instanceof jakarta.xml.ws.soap.SOAPFaultException fault) {
                    said.put("fault", faultOf(fault));
                }
            }
            said.put("failure", words.toString());
            return said;
        }
        Object body = exchange.getMessage().getBody();
        RetrievedDocumentSet set = EbXML30Converters.convert((RetrieveDocumentSetResponseType) body);
        said.put("status", String.valueOf(set.getStatus()));
        List<Object> errors = new ArrayList<>();
        for (ErrorInfo error : set.getErrors()) {
            errors.add(Map.of("code", error.getErrorCode().getOpcode(), "context", String.valueOf(error.getCodeContext())));
        }
        said.put("errors", errors);
        List<Object> documents = new ArrayList<>();
        for (RetrievedDocument document : set.getDocuments()) {
            documents.add(keep(document, documents.size() + 1));
        }
        said.put("documents", documents);
        return said;
    }

    private static Map<String, Object> faultOf(SoapFault fault) {
        String subcode = fault.getSubCode() == null ? "" : fault.getSubCode().getLocalPart();
        return Map.of("code", fault.getFaultCode().getLocalPart(), "subcode", subcode, "reason", fault.getReason());
    }

    private static Map<String, Object> faultOf(jakarta.xml.ws.soap.SOAPFaultException thrown) {
        var fault = thrown.getFault();
        var subcodes = fault.getFaultSubcodes();
        String subcode = subcodes.hasNext() ? subcodes.next().getLocalPart() : "";
        return Map.of("code", fault.getFaultCodeAsQName().getLocalPart(), "subcode", subcode, "reason", fault.getFaultString());
    }

    private Map<String, Object> keep(RetrievedDocument document, int number) throws Exception {
        MessageDigest sha256 = MessageDigest.getInstance("SHA-256");
        Path file = Path.of(one("save"), number + ".bin");
        long bytes;
        try (InputStream content = new DigestInputStream(document.getDataHandler().getInputStream(), sha256)) {
            bytes = Files.copy(content, file);
        }
        String digest = HexFormat.of().formatHex(sha256.digest());
        return Map.of("document", document.getRequestData().getDocumentUniqueId(), "mime_type", document.getMimeType(),
            "bytes", bytes, "sha256", digest, "file", file.toString());
    }

    /** WS-Security as the profile wants it: what is signed, with which algorithms, and the certificate as a token of its own. */
    private WSS4JOutInterceptor signer() throws Exception {
        Merlin crypto = new Merlin();
        crypto.setKeyStore(keys);
        Map<String, Object> settings = new HashMap<>();
        settings.put(ConfigurationConstants.ACTION, ConfigurationConstants.TIMESTAMP + " " + ConfigurationConstants.SIGNATURE);
        settings.put(ConfigurationConstants.SIGNATURE_USER, alias);
        settings.put(ConfigurationConstants.PW_CALLBACK_REF, (CallbackHandler) callbacks -> {
            for (Callback callback : callbacks) {
                ((WSPasswordCallback) callback).setPassword(new String(PASSWORD));
            }
        });
        settings.put(ConfigurationConstants.SIG_PROP_REF_ID, "crypto");
        settings.put("crypto", crypto);
        settings.put(ConfigurationConstants.SIG_KEY_ID, "DirectReference");
        settings.put(ConfigurationConstants.SIG_ALGO, "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha256");
        settings.put(ConfigurationConstants.SIG_DIGEST_ALGO, "http://www.w3.org/2001/04/xmlenc#sha256");
        settings.put(ConfigurationConstants.SIG_C14N_ALGO, "http://www.w3.org/2001/10/xml-exc-c14n#");
        settings.put(ConfigurationConstants.SIGNATURE_PARTS, String.join(";",
            "{Element}{" + SOAP + "}Body",
            "{Element}{" + WSU + "}Timestamp",
            "{Element}{" + WSA + "}To",
            "{Element}{" + WSA + "}Action",
            "{Element}{" + WSA + "}MessageID"));
        return new WSS4JOutInterceptor(settings);
    }

    /** One authority, and what every TLS client checks. */
    private SSLContextParameters trusting() throws Exception {
        KeyStore authorities = KeyStore.getInstance("PKCS12");
        authorities.load(null, null);
        try (InputStream pem = Files.newInputStream(Path.of(one("authority")))) {
            Certificate authority = CertificateFactory.getInstance("X.509").generateCertificate(pem);
            authorities.setCertificateEntry("authority", authority);
        }
        var store = new org.apache.camel.support.jsse.KeyStoreParameters();
        store.setKeyStore(authorities);
        var trust = new org.apache.camel.support.jsse.TrustManagersParameters();
        trust.setKeyStore(store);
        SSLContextParameters tls = new SSLContextParameters();
        tls.setTrustManagers(trust);
        return tls;
    }
}
