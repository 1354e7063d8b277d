import java.io.FileDescriptor;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.PrintStream;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.CodingErrorAction;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.acl.AccessControlEntry;
import org.apache.kafka.common.acl.AclBinding;
import org.apache.kafka.common.acl.AclOperation;
import org.apache.kafka.common.acl.AclPermissionType;
import org.apache.kafka.common.errors.TopicExistsException;
import org.apache.kafka.common.resource.PatternType;
import org.apache.kafka.common.resource.ResourcePattern;
import org.apache.kafka.common.resource.ResourceType;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/** The lab's own client of Kafka: `setup`, `dump TOPIC`, `send TOPIC KEY`, `offsets`; the first argument is a file of client properties. */
public class KafkaLab {
  /** For the tests of the bus itself, which share nothing with the managers. */
  static final String CONTRACT = "drover.contract.v1", CONTRACT_GROUP = "drover-contract";
  static final String REGISTRY = "drover.registry.v1", DEAD = "drover.registry.v1.dlq", MIGRATIONS = "drover.migrations.v1", GROUP = "drover-manager";

  public static void main(String[] arguments) throws Exception {
    Properties client = new Properties();
    try (FileInputStream file = new FileInputStream(arguments[0])) {
      client.load(file);
    }
    switch (arguments[1]) {
      case "setup" -> setup(client);
      case "dump" -> dump(client, arguments[2]);
      case "send" -> send(client, arguments[2], arguments[3], Integer.parseInt(arguments[4]));
      case "offsets" -> offsets(client);
      default -> throw new IllegalArgumentException(arguments[1]);
    }
  }

  /** The topics and the rights of the users, as docs/events.md lists them. */
  static void setup(Properties client) throws Exception {
    try (Admin admin = Admin.create(client)) {
      for (NewTopic topic : List.of(topic(REGISTRY, 3, 1), topic(DEAD, 1, 30), topic(MIGRATIONS, 3, 30), topic(CONTRACT, 3, 1))) {
        try {
          admin.createTopics(List.of(topic)).all().get();
        } catch (ExecutionException error) {
          if (!(error.getCause() instanceof TopicExistsException)) throw error;
        }
      }
      List<AclBinding> acls = new ArrayList<>();
      for (String agent : List.of("drover-agent", "drover-agent-scram")) {
        allow(acls, agent, ResourceType.TOPIC, REGISTRY, AclOperation.DESCRIBE, AclOperation.WRITE);
      }
      allow(acls, "drover-manager", ResourceType.TOPIC, REGISTRY, AclOperation.DESCRIBE, AclOperation.READ);
      allow(acls, "drover-manager", ResourceType.GROUP, GROUP, AclOperation.READ);
      allow(acls, "drover-manager", ResourceType.TOPIC, DEAD, AclOperation.DESCRIBE, AclOperation.WRITE);
      allow(acls, "drover-manager", ResourceType.TOPIC, MIGRATIONS, AclOperation.DESCRIBE, AclOperation.WRITE);
      allow(acls, "drover-agent", ResourceType.TOPIC, CONTRACT, AclOperation.DESCRIBE, AclOperation.WRITE);
      allow(acls, "drover-manager", ResourceType.TOPIC, CONTRACT, AclOperation.DESCRIBE, AclOperation.READ);
      allow(acls, "drover-manager", ResourceType.GROUP, CONTRACT_GROUP, AclOperation.READ);
      admin.createAcls(acls).all().get();
    }
  }

  /** Kept as long as the chart's KafkaTopics are. */
  static NewTopic topic(String name, int partitions, int days) {
    return new NewTopic(name, partitions, (short) 1).configs(Map.of("cleanup.policy", "delete", "retention.ms", String.valueOf(days * 86_400_000L)));
  }

  static void allow(List<AclBinding> acls, String user, ResourceType kind, String name, AclOperation... operations) {
    for (AclOperation operation : operations) {
      acls.add(new AclBinding(new ResourcePattern(kind, name, PatternType.LITERAL),
          new AccessControlEntry("User:" + user, "*", operation, AclPermissionType.ALLOW)));
    }
  }

  static List<TopicPartition> partitions(KafkaConsumer<byte[], byte[]> consumer, String topic) {
    return consumer.partitionsFor(topic).stream().map(it -> new TopicPartition(topic, it.partition())).collect(Collectors.toList());
  }

  static void dump(Properties client, String topic) {
    try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(client, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
      List<TopicPartition> partitions = partitions(consumer, topic);
      consumer.assign(partitions);
      consumer.seekToBeginning(partitions);
      Map<TopicPartition, Long> ends = consumer.endOffsets(partitions);
      List<ConsumerRecord<byte[], byte[]>> all = new ArrayList<>();
      while (partitions.stream().anyMatch(it -> consumer.position(it) < ends.get(it))) {
        consumer.poll(Duration.ofMillis(200)).forEach(all::add);
      }
      all.sort((a, b) -> Long.compare(a.timestamp(), b.timestamp()));
      PrintStream out = new PrintStream(new FileOutputStream(FileDescriptor.out), false, StandardCharsets.UTF_8); // whatever the locale
      for (ConsumerRecord<byte[], byte[]> record : all) out.print(text(record.key()) + "\t" + text(record.value()) + "\n");
      out.flush();
    }
  }

  /** One line, whatever it is: as it is where it is one already, so that JSON stays JSON; else escaped; what is no UTF-8 in hex. */
  static String text(byte[] bytes) {
    if (bytes == null) return "";
    try {
      String text = StandardCharsets.UTF_8.newDecoder().onMalformedInput(CodingErrorAction.REPORT).decode(ByteBuffer.wrap(bytes)).toString();
      if (text.chars().noneMatch(it -> it == '\n' || it == '\r' || it == '\t')) return text;
      return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t");
    } catch (CharacterCodingException error) {
      StringBuilder hex = new StringBuilder("\\x");
      for (byte b : bytes) hex.append(String.format("%02x", b));
      return hex.toString();
    }
  }

  static void send(Properties client, String topic, String key, int times) throws Exception {
    client.setProperty("acks", "all");
    client.setProperty("max.block.ms", "5000");
    client.setProperty("delivery.timeout.ms", "5000");
    client.setProperty("request.timeout.ms", "3000");
    byte[] value = System.in.readAllBytes();
    try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(client, new ByteArraySerializer(), new ByteArraySerializer())) {
      for (int i = 0; i < times; i++) producer.send(new ProducerRecord<>(topic, key.getBytes(StandardCharsets.UTF_8), value)).get(8, TimeUnit.SECONDS);
    } catch (ExecutionException error) {
      System.err.println("refused: " + error.getCause());
      System.exit(1);
    }
  }

  static void offsets(Properties client) throws Exception {
    try (Admin admin = Admin.create(client);
        KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(client, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
      var known = admin.listConsumerGroupOffsets(GROUP).partitionsToOffsetAndMetadata().get();
      Map<TopicPartition, Long> ends = consumer.endOffsets(Set.copyOf(partitions(consumer, REGISTRY)));
      for (TopicPartition partition : partitions(consumer, REGISTRY)) {
        var offset = known.get(partition);
        System.out.println(partition.topic() + "\t" + partition.partition() + "\t" + (offset == null ? "-" : offset.offset()) + "\t" + ends.get(partition));
      }
    }
  }
}
