package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// A beacon tells the other verbs which process serves a mount, without touching the mount, which may hang, and without a
// file that could be left behind: the daemon listens on an abstract socket named after the mount's device number, which
// no two mounts of one kernel have at the same time. A connection gets one line, and then ends when the daemon does.
//
// Abstract names are free for all and belong to a network namespace, so a client believes only root and the owner of the
// mount, and every verb works without a beacon, though umount then cannot wait for the daemon.
type beacon struct{ listener *net.UnixListener }

// beaconLine is what the daemon tells.
type beaconLine struct {
	PID     int    `json:"pid"`
	Proc    string `json:"proc"` // name of the control tree
	Version string `json:"version"`
}

// maxBeaconClients bounds what strangers can make the daemon spend on connections.
const maxBeaconClients = 16

func beaconName(device string) string { return "@memfs/" + device }

// light starts a beacon for the mount with that device number.
func light(device string, line beaconLine) (*beacon, error) {
	text, err := json.Marshal(line)
	if err != nil {
		return nil, err
	}
	var listener *net.UnixListener
	for try := 0; ; try++ {
		listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: beaconName(device), Net: "unix"})
		if err == nil {
			break
		}
		// The daemon that had the device number before us may not have noticed yet that its mount is gone.
		if try == 20 || !errors.Is(err, unix.EADDRINUSE) {
			return nil, err
		}
		time.Sleep(10 * time.Millisecond)
	}
	text = append(text, '\n')
	go func() {
		clients := make(chan struct{}, maxBeaconClients)
		for {
			conn, err := listener.AcceptUnix()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				time.Sleep(100 * time.Millisecond) // out of descriptors, say
				continue
			}
			select {
			case clients <- struct{}{}:
			default:
				conn.Close()
				continue
			}
			go func() {
				defer func() { conn.Close(); <-clients }()
				conn.SetWriteDeadline(time.Now().Add(time.Second))
				if _, err := conn.Write(text); err == nil {
					io.Copy(io.Discard, conn) // until the client has gone
				}
			}()
		}
	}()
	return &beacon{listener}, nil
}

// Close puts the beacon out for new clients. Those that wait go on to wait for the end of the process.
func (b *beacon) Close() { b.listener.Close() }

// daemonRef is a client's hold on a mount's daemon.
type daemonRef struct {
	beaconLine
	pidfd int // −1: none
	conn  net.Conn
}

// findDaemon asks the beacon of a mount. nil if there is none to be believed.
func findDaemon(m mountEntry) *daemonRef {
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.Dial("unix", beaconName(m.device))
	if err != nil {
		return nil
	}
	d := &daemonRef{pidfd: -1, conn: conn}
	peer, err := peerOf(conn.(*net.UnixConn))
	trusted := err == nil && (peer.Uid == 0 || int(peer.Uid) == os.Geteuid() || strconv.Itoa(int(peer.Uid)) == m.owner())
	conn.SetReadDeadline(time.Now().Add(time.Second))
	if !trusted {
		conn.Close()
		return nil
	}
	// A daemon that hangs says nothing, but the kernel says who it is.
	line, err := bufio.NewReader(io.LimitReader(conn, 4096)).ReadBytes('\n')
	if err != nil || json.Unmarshal(line, &d.beaconLine) != nil {
		d.beaconLine = beaconLine{}
	}
	d.PID = int(peer.Pid) // as our PID namespace numbers it; 0 if it does not
	if d.PID > 0 {
		if fd, err := unix.PidfdOpen(d.PID, 0); err == nil {
			d.pidfd = fd
		}
	}
	return d
}

func peerOf(conn *net.UnixConn) (peer *unix.Ucred, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	callErr := raw.Control(func(fd uintptr) {
		peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	return peer, errors.Join(callErr, err)
}

// wait returns true when the daemon has ended, or false after the time-out.
func (d *daemonRef) wait(timeout time.Duration) bool {
	deadline := time.Now().Add(timeout)
	d.conn.SetReadDeadline(deadline)
	if _, err := io.Copy(io.Discard, d.conn); errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	if d.pidfd < 0 {
		return true
	}
	// Its descriptors are gone, and the rest of it is on the way.
	for {
		left := max(time.Until(deadline), 100*time.Millisecond)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(d.pidfd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		return err == nil && n > 0
	}
}

// kill ends a daemon that hangs.
func (d *daemonRef) kill() {
	if d.pidfd >= 0 {
		unix.PidfdSendSignal(d.pidfd, unix.SIGKILL, nil, 0)
	}
}

func (d *daemonRef) close() {
	d.conn.Close()
	if d.pidfd >= 0 {
		unix.Close(d.pidfd)
	}
}

// String names the daemon in messages.
func (d *daemonRef) String() string {
	if d == nil || d.PID == 0 {
		return "the daemon"
	}
	return fmt.Sprintf("the daemon (process %d)", d.PID)
}
