package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
)

const (
	notifyEnv  = "NOTIFY_SOCKET"    // sd_notify(3)
	mainPIDEnv = "SYSTEMD_EXEC_PID" // systemd.exec(5)
)

// serviceMain reports whether we are the main process of a systemd service that waits to be told of readiness
// (Type=notify): it is ended when we go to the background. A program that such a service runs inherits the socket, but
// not the process number.
func serviceMain() bool {
	pid := os.Getenv(mainPIDEnv)
	return os.Getenv(notifyEnv) != "" && (pid == "" || pid == strconv.Itoa(os.Getpid()))
}

// serviceManager is who wants to know how a session in front is doing, sd_notify(3)'s protocol. nil is nobody.
type serviceManager struct{ address string }

// findServiceManager takes the socket out of the environment, so that no child of ours speaks in our name.
func findServiceManager() *serviceManager {
	address := os.Getenv(notifyEnv)
	os.Unsetenv(notifyEnv)
	if !strings.HasPrefix(address, "/") && !strings.HasPrefix(address, "@") { // @: an abstract one
		return nil
	}
	return &serviceManager{address}
}

// tell sends assignments such as READY=1. Nothing depends on their arriving, so an error is the caller's to log.
func (m *serviceManager) tell(assignments ...string) error {
	if m == nil {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: m.address, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("service manager: %w", err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(strings.Join(assignments, "\n"))); err != nil {
		return fmt.Errorf("service manager: %w", err)
	}
	return nil
}
