# Kafka: one broker (KRaft) in the control plane's network namespace, only where it is asked for.
# Certificates as Strimzi makes them: a cluster CA signs the broker, a clients CA the users.
# shellcheck shell=bash

KAFKA_PKI=$LAB/kafka-pki KAFKA_DATA=$LAB/kafka
KAFKA_MTLS=$CP_ADDRESS:9093 KAFKA_SCRAM=$CP_ADDRESS:9094 KAFKA_ADMIN=127.0.0.1:9092
# outsider: signed, but without rights. stranger: signed by somebody else.
KAFKA_USERS=(drover-manager drover-agent outsider stranger)
KAFKA_JAVA=(java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info)

kafka_pki_make() { # FOLDER
  local ca user
  cd "$1"
  for ca in cluster-ca clients-ca stranger-ca; do pki_ca "$ca" "$ca"; done
  pki_certificate broker broker "" "IP:$CP_ADDRESS,IP:127.0.0.1" cluster-ca
  cat broker.key broker.crt cluster-ca.crt >broker-keystore.pem
  for user in "${KAFKA_USERS[@]}"; do
    ca=clients-ca
    [ "$user" != stranger ] || ca=stranger-ca
    pki_certificate "$user" "$user" "" "" "$ca"
    cat "$user.key" "$user.crt" >"$user.pem"
    kafka_client "$user" >"$user.properties"
    # As Strimzi's Secrets name them
    mkdir -p "users/$user"
    cp "$user.crt" "users/$user/user.crt"
    cp "$user.key" "users/$user/user.key"
  done
  echo "bootstrap.servers=$KAFKA_ADMIN" >admin.properties
  openssl rand -hex 16 >scram.password
  cat /proc/sys/kernel/random/uuid >cluster.id
}
kafka_client() { # USER
  printf '%s\n' "bootstrap.servers=$KAFKA_MTLS" security.protocol=SSL ssl.keystore.type=PEM "ssl.keystore.location=$KAFKA_PKI/$1.pem" \
    ssl.truststore.type=PEM "ssl.truststore.location=$KAFKA_PKI/cluster-ca.crt"
}
kafka_pki_up() { pki_once "$KAFKA_PKI" cluster.id kafka_pki_make "Kafka's certificates"; }

# The broker's session is short, so that it is back in seconds after a SIGKILL.
kafka_properties() {
  cat <<P
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:9095
controller.listener.names=CONTROLLER
listeners=PLAIN://$KAFKA_ADMIN,MTLS://$KAFKA_MTLS,SCRAM://$KAFKA_SCRAM,CONTROLLER://127.0.0.1:9095
advertised.listeners=PLAIN://$KAFKA_ADMIN,MTLS://$KAFKA_MTLS,SCRAM://$KAFKA_SCRAM
inter.broker.listener.name=PLAIN
listener.security.protocol.map=PLAIN:PLAINTEXT,MTLS:SSL,SCRAM:SASL_SSL,CONTROLLER:PLAINTEXT
log.dirs=$KAFKA_DATA
num.partitions=1
default.replication.factor=1
min.insync.replicas=1
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
num.network.threads=1
num.io.threads=2
background.threads=2
log.cleaner.dedupe.buffer.size=2097152
log.segment.bytes=67108864
queued.max.requests=50
ssl.keystore.type=PEM
ssl.keystore.location=$KAFKA_PKI/broker-keystore.pem
listener.name.mtls.ssl.keystore.type=PEM
listener.name.mtls.ssl.keystore.location=$KAFKA_PKI/broker-keystore.pem
listener.name.mtls.ssl.truststore.type=PEM
listener.name.mtls.ssl.truststore.location=$KAFKA_PKI/clients-ca.crt
listener.name.mtls.ssl.client.auth=required
listener.name.mtls.ssl.principal.mapping.rules=RULE:^CN=(.*?)(,.*)?\$/\$1/,DEFAULT
listener.name.scram.ssl.keystore.type=PEM
listener.name.scram.ssl.keystore.location=$KAFKA_PKI/broker-keystore.pem
listener.name.scram.sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.scram.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
sasl.enabled.mechanisms=SCRAM-SHA-512
broker.session.timeout.ms=1500
broker.heartbeat.interval.ms=300
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
allow.everyone.if.no.acl.found=false
P
}

kafka_program() { # CLASS ARGUMENTS…: in the control plane's network
  local jars
  jars=$(cached kafka)
  nsenter "--net=/run/netns/$CP" -- "${KAFKA_JAVA[@]}" -Dorg.slf4j.simpleLogger.defaultLogLevel=off -Xms32m -Xmx128m -cp "$jars/*:$jars/lab" "$@"
}

# Sets COMMAND, and writes what the broker reads.
part_kafka() {
  local jars
  [ -e "$KAFKA_PKI/cluster.id" ] || die "the lab was never brought up with Kafka; run: e2e/lab up --with kafka"
  jars=$(cached kafka)
  kafka_properties >"$RUN/kafka.properties"
  if [ ! -e "$KAFKA_DATA/meta.properties" ]; then
    kafka_program kafka.tools.StorageTool format -t "$(cat "$KAFKA_PKI/cluster.id")" -c "$RUN/kafka.properties" \
      -S "SCRAM-SHA-512=[name=drover-agent-scram,password=$(cat "$KAFKA_PKI/scram.password"),iterations=4096]" >"$LOG/kafka-format.log" 2>&1 ||
      die "Kafka's storage could not be made; see $LOG/kafka-format.log"
  fi
  : >"$LOG/kafka.log"
  # shellcheck disable=SC2034  # start_part reads it
  COMMAND=("${KAFKA_JAVA[@]}" -Xms64m -Xmx256m -cp "$jars/*" kafka.Kafka "$RUN/kafka.properties")
}
kafka_ready() { grep -q 'Kafka Server started' "$LOG/kafka.log"; }

kafka_up() {
  local begin=$SECONDS
  build_one kafka
  kafka_pki_up
  start_part kafka
  wait_part kafka
  kafka_program KafkaLab "$KAFKA_PKI/admin.properties" setup || die "Kafka's topics and rights could not be made; see: e2e/lab logs kafka"
  say "kafka is up in $((SECONDS - begin)) s: mTLS at $KAFKA_MTLS, SCRAM at $KAFKA_SCRAM"
}
kafka_down() {
  end_process kafka KILL
  rm -rf "$KAFKA_DATA"
}

kafka_want() { pid_of kafka >/dev/null || die "Kafka does not run; start it: e2e/lab up --with kafka"; }
kafka_dump() { # TOPIC
  [ $# = 1 ] || die "usage: e2e/lab kafka-dump TOPIC"
  kafka_want
  kafka_program KafkaLab "$KAFKA_PKI/admin.properties" dump "$1"
}
kafka_send() { # TOPIC KEY [--user USER] [--times N]
  local topic=${1:-} key=${2:-} user=admin times=1
  [ $# -ge 2 ] || die "usage: e2e/lab kafka-send TOPIC KEY [--user USER] [--times N] <VALUE"
  shift 2
  while [ $# -gt 1 ]; do
    case $1 in
    --user) user=$2 ;;
    --times) times=$2 ;;
    *) die "'$1' is no option of kafka-send" ;;
    esac
    shift 2
  done
  [ -e "$KAFKA_PKI/$user.properties" ] || die "there is no Kafka user '$user'. Users: ${KAFKA_USERS[*]}"
  kafka_want
  kafka_program KafkaLab "$KAFKA_PKI/$user.properties" send "$topic" "$key" "$times"
}
kafka_offsets() {
  kafka_want
  kafka_program KafkaLab "$KAFKA_PKI/admin.properties" offsets
}

# The Secrets as Strimzi hands them out, copied to Drover's namespace.
kafka_secrets() { # NAMESPACE
  local user namespace=$1
  kafka_want
  secret() { "${KUBECTL[@]}" -n "$namespace" create secret generic "$@" --dry-run=client -o yaml | "${KUBECTL[@]}" apply -f - >/dev/null; }
  "${KUBECTL[@]}" create namespace "$namespace" --dry-run=client -o yaml | "${KUBECTL[@]}" apply -f - >/dev/null
  secret drover-kafka-cluster-ca-cert "--from-file=ca.crt=$KAFKA_PKI/cluster-ca.crt"
  for user in drover-manager drover-agent; do
    secret "$user-kafka" "--from-file=ca.crt=$KAFKA_PKI/clients-ca.crt" "--from-file=user.crt=$KAFKA_PKI/$user.crt" "--from-file=user.key=$KAFKA_PKI/$user.key"
  done
  secret drover-agent-scram "--from-file=password=$KAFKA_PKI/scram.password"
}
