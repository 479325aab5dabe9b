package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

const (
	gpuResource = "nvidia.com/gpu"
	gpuSocket   = "fake-gpu.sock"
)

// fakeGPUs is a device plugin that offers as many GPUs as it is long. A
// container that is given some finds their names in NVIDIA_VISIBLE_DEVICES.
type fakeGPUs struct {
	api.UnimplementedDevicePluginServer
	devices []*api.Device
}

func (f fakeGPUs) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{}, nil
}

func (f fakeGPUs) ListAndWatch(_ *api.Empty, stream grpc.ServerStreamingServer[api.ListAndWatchResponse]) error {
	if err := stream.Send(&api.ListAndWatchResponse{Devices: f.devices}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

func (f fakeGPUs) Allocate(_ context.Context, request *api.AllocateRequest) (*api.AllocateResponse, error) {
	var response api.AllocateResponse
	for _, container := range request.ContainerRequests {
		response.ContainerResponses = append(response.ContainerResponses, &api.ContainerAllocateResponse{
			Envs: map[string]string{"NVIDIA_VISIBLE_DEVICES": strings.Join(container.DevicesIds, ",")},
		})
	}
	return &response, nil
}

// runFakeGPUs serves COUNT devices until it is killed.
func runFakeGPUs(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: fake-gpus COUNT")
	}
	count, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	var plugin fakeGPUs
	for i := range count {
		plugin.devices = append(plugin.devices, &api.Device{ID: fmt.Sprintf("GPU-fake-%d", i), Health: api.Healthy})
	}
	for {
		if err := plugin.serveOneKubelet(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// serveOneKubelet registers with the kubelet, and returns when a restarted
// one has emptied the folder of sockets, which is how kubelet asks its
// plugins to register again.
func (f fakeGPUs) serveOneKubelet() error {
	socket := filepath.Join(api.DevicePluginPath, gpuSocket)
	for !exists(api.KubeletSocket) {
		time.Sleep(100 * time.Millisecond)
	}
	os.Remove(socket)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	defer server.Stop()
	api.RegisterDevicePluginServer(server, f)
	go server.Serve(listener)
	if err := register(); err != nil {
		return fmt.Errorf("register: %w", err)
	}
	fmt.Fprintln(os.Stderr, "registered", len(f.devices), "fake GPUs")
	for exists(socket) {
		time.Sleep(500 * time.Millisecond)
	}
	return nil
}

func register() error {
	conn, err := grpc.NewClient("unix://"+api.KubeletSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err = api.NewRegistrationClient(conn).Register(ctx, &api.RegisterRequest{
		Version: api.Version, Endpoint: gpuSocket, ResourceName: gpuResource,
	})
	return err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
